"""A file a form of task: head, logits, loss, predictions."""
