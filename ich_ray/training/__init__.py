"""Training one network: the loop, its parts, and what makes it exact, shared and resumable."""
