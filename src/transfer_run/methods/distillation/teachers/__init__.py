"""Teachers and what can be observed in them."""
