"""The run folder: its options, checkpoints and history."""
