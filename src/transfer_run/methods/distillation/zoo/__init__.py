"""A zoo of finished models: which of them are alike to a target task, and what they say about its images."""
