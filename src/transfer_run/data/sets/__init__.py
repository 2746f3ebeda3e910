"""A file a data set; it bears the data set's key."""
