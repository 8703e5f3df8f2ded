"""A cluster from the outside: jobs on it, and whether it is fit and safe to run a search."""
