"""Many files: labels, roles, prepared blocks."""
