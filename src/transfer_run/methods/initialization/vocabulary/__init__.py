"""Vocabularies: which tokens two tokenizers share, and embeddings for those of another one."""
