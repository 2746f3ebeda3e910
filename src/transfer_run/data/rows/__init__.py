"""Which rows, in which order: sampling, splits, subsets."""
