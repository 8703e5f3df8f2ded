"""Metrics, calibration errors and intervals of figures; labels, scores and patients, no files."""
