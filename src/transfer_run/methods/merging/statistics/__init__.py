"""What is estimated on data before a merge: Fisher, Gram matrices, likelihoods."""
