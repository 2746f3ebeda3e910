"""Layers over the rows of a batch."""
