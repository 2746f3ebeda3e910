"""Methods that choose which data a model learns from."""
