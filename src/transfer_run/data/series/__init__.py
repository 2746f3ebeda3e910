"""Series of numbers over time: read, set on equal steps, standardised and cut into windows."""
