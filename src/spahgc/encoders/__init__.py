"""Encoders: from the tile of a spot to its embedding."""
