"""Hyperparameters, networks and the training loop. Knows nothing of Ray."""
