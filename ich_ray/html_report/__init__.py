"""The report: one self-contained HTML page about a search and the model that came out of it."""
