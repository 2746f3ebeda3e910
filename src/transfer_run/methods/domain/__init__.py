"""Methods of a single domain: time series, bird's eye views, hair."""
