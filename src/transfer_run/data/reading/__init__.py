"""Tables and label columns as people write them."""
