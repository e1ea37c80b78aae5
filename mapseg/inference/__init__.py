"""Applies trained networks to frames: prediction, results on disk, export."""
