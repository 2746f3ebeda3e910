"""Frozen hidden states kept on disk or in memory, and served in the place of blocks."""
