"""Calibration, operating points and the one opening of the test patients."""
