"""Lets tools that still call setup.py build mapseg; pyproject.toml holds everything."""

from setuptools import setup

setup()
