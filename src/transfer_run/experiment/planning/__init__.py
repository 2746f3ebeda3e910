"""What can be known before a run: plan, dry run, checks."""
