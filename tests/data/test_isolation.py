"""A poison file among many: its decoder dies or hangs in a Ray worker, and only its own row says so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ich_ray.ct.decoder import FRAME_LIMIT_S
from ich_ray.data.prepare.run import prepare
from ich_ray.runtime import connected
from tests.ct.planted import plant_decoder, poison
from tests.data.folders import PATIENTS, SLICES, refusals, write_cohort


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray whose workers find the planted decoder first, and none that another test has left running."""
    assert not ray.is_initialized()
    folder = tmp_path_factory.mktemp("isolation")
    patch = pytest.MonkeyPatch()
    patch.setenv("ICH_RAY_KEY_FILE", str(folder / "key"))
    patch.setenv("PYTHONPATH", f"{plant_decoder(folder / 'plugins')}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with connected(cpus=2):
        yield
    patch.undo()


def test_poison_costs_its_own_row_only(tmp_path: Path) -> None:
    labels = write_cohort(tmp_path / "images")
    clean = prepare(tmp_path / "images", labels, tmp_path / "clean", size=16)
    # Names that put them among the good files of both chunks.
    for name, order in {"ID_001x": "EXIT", "ID_011x": "SEGV", "ID_101x": "EXIT"}.items():
        (tmp_path / "images" / f"{name}.dcm").write_bytes(poison(order, SOPInstanceUID=name, PatientID=name))
    spoiled = prepare(tmp_path / "images", labels, tmp_path / "spoiled", size=16, limit_rejected=1)
    assert refusals(spoiled) == dict.fromkeys(
        ("ID_001x.dcm", "ID_011x.dcm", "ID_101x.dcm"),
        ("decoder_crash", "the decoder died, or was not done in 10 s"),
    )
    assert spoiled.manifest.accepted == PATIENTS * SLICES
    assert spoiled.manifest.fingerprint == clean.manifest.fingerprint


@pytest.mark.slow
def test_a_decoder_that_hangs_costs_ten_seconds_and_its_own_row(tmp_path: Path) -> None:
    labels = write_cohort(tmp_path / "images")
    clean = prepare(tmp_path / "images", labels, tmp_path / "clean", size=16)
    (tmp_path / "images" / "ID_011x.dcm").write_bytes(poison("HANG", SOPInstanceUID="ID_011x", PatientID="ID_011x"))
    started = time.monotonic()
    spoiled = prepare(tmp_path / "images", labels, tmp_path / "spoiled", size=16, limit_rejected=1)
    assert FRAME_LIMIT_S <= time.monotonic() - started < 6 * FRAME_LIMIT_S
    assert refusals(spoiled) == {"ID_011x.dcm": ("decoder_crash", "the decoder died, or was not done in 10 s")}
    assert spoiled.manifest.fingerprint == clean.manifest.fingerprint
