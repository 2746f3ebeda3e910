"""What tuning methods attach: layers of peft, fused projections taken apart for them, biases."""
