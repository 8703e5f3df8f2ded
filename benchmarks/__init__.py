"""Ratios against the usual way and against the floor."""
