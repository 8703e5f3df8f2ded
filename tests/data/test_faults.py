"""Prepare killed between any two steps, and a disk that fills up: no dataset or a whole one, and nothing done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ich_ray import cli
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import ConfigError, IchRayError
from tests.data.folders import spoil, write_cohort
from tests.data.prepare.test_run import check_complete
from tests.disks import free_bytes, small_disk

# Prepares without Ray, so that one process does every step, and dies by SIGKILL at one rename.
DYING = """
import os, signal, sys
from pathlib import Path
from ich_ray.data.prepare import run as rim
from ich_ray.data.prepare.decode_chunk import run_chunk

images, labels, out, name, moment = sys.argv[1:]
rim._mapped = lambda job, chunks, *_: (run_chunk(job, number, files) for number, files in chunks.items())
replace = Path.replace

def dying(path, target):
    if Path(target).name == name and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(path, target)
    if Path(target).name == name and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)

Path.replace = dying
rim.prepare(images, labels, out, size=16, limit_rejected=1)
"""


pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cohort")
    labels = write_cohort(folder / "images")
    spoil(folder / "images", labels)
    return folder / "images", labels


@pytest.fixture(scope="module")
def undisturbed(cohort: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(*cohort, tmp_path_factory.mktemp("undisturbed") / "out", size=16, limit_rejected=1)


POINTS = {
    "after the rows of a block": ("00000.rows", "after", ["00000.arrow", "00000.rows"]),
    "after block tmp": ("00001.arrow", "before", ["00000.arrow", "00000.rows"]),
    "after block rename": ("00001.arrow", "after", ["00000.arrow", "00000.rows"]),
    "after the tables": ("rejected.parquet", "after", ["00000.arrow", "00000.rows", "00001.arrow", "00001.rows"]),
    "after manifest tmp": ("dataset.json", "before", ["00000.arrow", "00000.rows", "00001.arrow", "00001.rows"]),
}


@pytest.mark.parametrize(("name", "moment", "kept"), POINTS.values(), ids=POINTS)
def test_killed_by_the_system_and_run_again(
    tmp_path: Path, cohort: tuple[Path, Path], undisturbed: PreparedDataset, name: str, moment: str, kept: list[str]
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", DYING, *map(str, cohort), str(out), name, moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ConfigError, match=r"holds dataset\.json, got none"):
        PreparedDataset.open(out)
    stamps = {file: (out / "blocks" / file).stat().st_mtime_ns for file in kept}
    again = prepare(*cohort, out, size=16, limit_rejected=1)
    check_complete(again)
    assert again.manifest.fingerprint == undisturbed.manifest.fingerprint
    left = {file: path.stat().st_mtime_ns for file in stamps if (path := out / "blocks" / file).exists()}
    assert left.items() <= stamps.items()
    assert not list(out.rglob("*.tmp"))


def test_killed_after_the_manifest_the_dataset_is_whole(
    tmp_path: Path, cohort: tuple[Path, Path], undisturbed: PreparedDataset
) -> None:
    arguments = [*map(str, cohort), str(tmp_path / "out"), "dataset.json", "after"]
    assert subprocess.run([sys.executable, "-c", DYING, *arguments], check=False).returncode == -signal.SIGKILL
    whole = PreparedDataset.open(tmp_path / "out", verify=True)
    assert whole.manifest.fingerprint == undisturbed.manifest.fingerprint
    assert prepare(*cohort, tmp_path / "out", size=16, limit_rejected=1).manifest == whole.manifest


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as folder:
        yield folder


def test_a_full_disk(
    disk: Path, cohort: tuple[Path, Path], undisturbed: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = prepare(*cohort, disk / "before", size=16, limit_rejected=1)
    spare = disk / "spare"
    arguments = ["prepare", *map(str, cohort), "--size", "16", "--limit-rejected", "100%", "--out", str(disk / "out")]
    arguments.insert(2, "--labels")
    errors = []
    for free_kib in (
        8,
        16,
        24,
        32,
        48,
        64,
        128,
        256,
        512,
        1024,
    ):  # each run writes what it has space for, until all is there
        _fill(spare, free_kib)
        code = cli.call(arguments)
        spare.unlink()
        errors.append(capsys.readouterr().err)
        if code == 3:
            break
        assert code == 1
        assert "must be written, got No space left on device; free space or correct the folder, then" in errors[-1]
        assert errors[-1].count("\n") == 1
        assert not (disk / "out" / "dataset.json").exists()
        check_complete(PreparedDataset.open(before.files.root))
    assert len(errors) > 1
    assert PreparedDataset.open(disk / "out").manifest.fingerprint == undisturbed.manifest.fingerprint


def _fill(spare: Path, free_kib: int) -> None:
    spare.write_bytes(b"\0" * (free_bytes(spare.parent) - free_kib * 1024))


def test_a_disk_that_fills_up_after_the_blocks(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ich_ray.data.prepare.write.write_json", full)
        with pytest.raises(IchRayError, match="out: the dataset must be written, got No space left on device; free"):
            prepare(*cohort, tmp_path / "out", size=16, limit_rejected=1)
    monkeypatch.setattr("ich_ray.data.prepare.run._mapped", lambda *_: pytest.fail("the blocks were there"))
    check_complete(prepare(*cohort, tmp_path / "out", size=16, limit_rejected=1))
