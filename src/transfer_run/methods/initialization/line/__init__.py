"""Weights as a function of depth, and the mixed images on which they are learned."""
