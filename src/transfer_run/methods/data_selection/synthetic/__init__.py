"""Synthetic training images: how they begin, are varied, written down and judged."""
