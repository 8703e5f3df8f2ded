"""A search in Ray Tune: driver, sampler, stopping rule and trials, told what the ledger says."""
