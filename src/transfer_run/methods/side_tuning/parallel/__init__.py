"""Networks that read all taps at once: UniPT and its kin."""
