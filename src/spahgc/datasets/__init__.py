"""Slides to try the package on: drawn ones and published ones."""
