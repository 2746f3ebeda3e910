"""What methods of time series share."""
