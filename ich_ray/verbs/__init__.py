"""Verbs of the command line: each calls one public function and prints its result."""
