"""What methods share that learn one task after another."""
