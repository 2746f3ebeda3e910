"""From words to one valid config with an identity."""
