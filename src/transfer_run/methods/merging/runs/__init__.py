"""Source runs and the report of a merge."""
