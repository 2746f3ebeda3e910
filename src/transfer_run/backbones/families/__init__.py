"""A file a family of backbones; it bears the family's key."""
