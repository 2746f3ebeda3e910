"""Masks of noise over images, and the network that chooses their distribution."""
