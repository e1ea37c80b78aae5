"""Converts folders of street-scene images and labels to mapseg records."""
