"""Exports of a run for programs that do not use mapseg."""
