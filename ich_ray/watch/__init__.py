"""A page on this machine that shows a search while it runs and after it, from its ledger alone."""
