"""A prepared dataset: written once by prepare/, then only read."""
