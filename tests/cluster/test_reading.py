from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ich_ray.search.ledger import Ledger, Verdict
from tests.records import make_record

# In a process of its own: copy the search to where a URI leads, read it there, say what was imported.
READ = """
import sys
from pathlib import Path
from ich_ray import cli, open_search
from ich_ray.storage import locate
source, uri = Path(sys.argv[1]), sys.argv[2]
for path in source.rglob("*.json"):
    target = locate(uri) / path.relative_to(source).as_posix()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
found = open_search(uri)
assert (found.best().number, found.best().value, len(found.trials)) == (1, 0.7, 3), found
assert cli.call(["results", uri, "--json", "--top", "1"]) == 0
print([name for name in ("ray", "torch", "optuna", "numba") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_running_search_is_read_through_a_uri_without_ray_and_torch(scheme: str, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record())
    for value in (0.5, 0.7):
        number = ledger.add({"dropout": 0.1}).number
        ledger.report(number, 100, {"average_precision": value}, 1.0, end=Verdict("completed"))
    ledger.add({"dropout": 0.2})
    uri = f"{scheme}:/" + f"/{tmp_path}/there"
    command = [sys.executable, "-c", READ, str(tmp_path / "s"), uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert '"number": 1' in done.stdout
