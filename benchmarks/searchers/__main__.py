"""`python -m benchmarks.searchers METHOD FOLDER`: the search that a folder asks for."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.searchers.task import Task

if __name__ == "__main__":
    method, folder = sys.argv[1:]
    importlib.import_module(f"benchmarks.searchers.{method}").search(Task.read(Path(folder)))
