"""Soft prompts of tasks: how alike two of them are."""
