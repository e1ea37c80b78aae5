"""What the doctor checks before a run."""
