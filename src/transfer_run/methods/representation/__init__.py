"""Better representations from the same network: what is changed is how it is trained, not what it is."""
