"""The verbs of the command line: each calls one public function and prints what it returns; cli.py registers them."""
