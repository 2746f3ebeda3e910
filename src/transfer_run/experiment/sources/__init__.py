"""Earlier runs, folders and hub models that a run needs."""
