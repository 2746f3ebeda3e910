"""Networks cut between two layers: class splits, their trainings, what they tell."""
