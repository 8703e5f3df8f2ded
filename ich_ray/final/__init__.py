"""From the best trial to a bundle that can be trusted: retrain, calibrate, evaluate, report."""
