"""One hyperparameter search: its space, its ledger, and how Tune runs it."""
