"""Modules that one side-tuning paper or the other brings."""
