"""Trained networks over frames: prediction, results on disk, export."""
