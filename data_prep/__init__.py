"""Turns folders of street-scene images and labels into mapseg records."""
