"""A search over hyperparameters: its space, ledger, plan, course and checks."""
