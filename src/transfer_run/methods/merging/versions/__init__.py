"""Versions of one model whose vocabularies, tokenizers and settings may differ."""
