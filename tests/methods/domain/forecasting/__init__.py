"""Methods of single domains."""
