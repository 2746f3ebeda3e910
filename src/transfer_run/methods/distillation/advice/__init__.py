"""Earlier distillations, recorded and learned from."""
