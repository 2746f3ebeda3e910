"""Logits of several language models become those of one, token by token."""
