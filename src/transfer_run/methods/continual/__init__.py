"""Continual learning: tasks one after another, without losing what was known before."""
