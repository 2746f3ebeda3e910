"""The scores by name, each a pure function of float64 features (N, D) and labels (N,); higher is better in all."""
