"""One self-contained HTML page about a search and its bundle."""
