"""Between trained classifiers: who teaches a sample, how far two models are apart, what one knows more."""
