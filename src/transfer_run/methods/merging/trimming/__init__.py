"""Which entries of a task vector stay."""
