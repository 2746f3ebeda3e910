"""Checkpoints aligned, read, merged and written a piece at a time."""
