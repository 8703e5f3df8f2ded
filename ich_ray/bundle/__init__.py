"""Weights and their card: save, load, verify, predict, explain, export."""
