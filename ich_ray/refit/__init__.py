"""From the best trials to a bundle: confirm, retrain, build."""
