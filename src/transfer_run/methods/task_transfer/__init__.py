"""Methods that learn a target task by way of other tasks."""
