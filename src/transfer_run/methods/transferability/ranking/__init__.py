"""Features extracted, models ranked, rankings drawn and compared."""
