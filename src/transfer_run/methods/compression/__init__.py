"""Methods that make a trained network smaller."""
