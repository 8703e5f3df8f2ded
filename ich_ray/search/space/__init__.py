"""The search space: parameters, their values and conditions, and the YAML file that holds them."""
