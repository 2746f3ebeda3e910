"""Groups of training rows, scored and dropped."""
