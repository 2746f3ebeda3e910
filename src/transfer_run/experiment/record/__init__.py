"""What is written and shown while a run goes on and after it."""
