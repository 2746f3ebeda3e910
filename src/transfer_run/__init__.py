"""Run, measure and compare ways to transfer a pretrained model."""

__version__ = "0.1.0"
