"""Kernel ridge regression on the features of a pool of partly trained networks."""
