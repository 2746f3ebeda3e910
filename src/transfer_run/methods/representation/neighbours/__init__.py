"""References that outlive their batch, and losses over the nearest of them."""
