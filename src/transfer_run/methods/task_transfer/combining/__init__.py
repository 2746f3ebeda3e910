"""What combines the adapters of several source tasks: the adapters themselves, scaling, attention over them."""
