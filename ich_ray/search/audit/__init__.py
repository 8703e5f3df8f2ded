"""Whether a search is what it says it is: invariants of its files alone."""
