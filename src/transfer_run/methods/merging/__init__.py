"""Several checkpoints of one architecture become one, tensor by tensor, without ever holding a whole model."""
