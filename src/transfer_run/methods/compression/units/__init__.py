"""Heads and neurons of a transformer: what each is worth, which are kept, how the others are cut out."""
