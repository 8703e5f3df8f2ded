"""Programs that others keep beside the repository run as they stand: what they import and call keeps its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import shared_case

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_program_with_a_trainer_of_its_own_runs_to_its_end(tmp_path: Path) -> None:
    """How its trials end is for other tests to say; here all forty must."""
    command = [sys.executable, str(shared_case("sick_worker.py")), str(REPOSITORY)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr
    states = ran.stdout.splitlines()[0]
    assert "'running'" not in states
    assert sum(map(int, re.findall(r"\): (\d+)", states))) == 40
