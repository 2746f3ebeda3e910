"""Experts, their trajectories, and students that are to follow them."""
