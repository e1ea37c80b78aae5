"""Checks that the doctor makes before a run."""
