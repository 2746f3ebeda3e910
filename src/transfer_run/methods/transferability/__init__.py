"""Transferability: which backbone, or which layer, suits a data set, answered without fine-tuning."""
