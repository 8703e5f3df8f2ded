"""Published systems as they were, beside what this package makes of the same slices."""
