"""Metrics of one split."""
