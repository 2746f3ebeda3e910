"""Tests of data/series."""
