"""Hyperparameters and the networks that they describe; nothing of data or training."""
