"""What `make docs` needs beside docs/: the reference out of the code, links to files elsewhere, pictures."""
