from __future__ import annotations

import os
from pathlib import Path

import pytest

from ich_ray.errors import TrialFailure
from ich_ray.search.trial_output import Output, read_output
from ich_ray.search.tune import trial_log
from ich_ray.search.tune.train_workers import FaultOfWorker
from ich_ray.search.tune.trial_log import TrialLog
from ich_ray.storage import SearchFiles, locate, write_json


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    files = SearchFiles(locate(tmp_path / "s"))
    write_json(files.search, {})
    return files


@pytest.fixture
def err(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stderr of this process, had Ray started it."""
    out, err = (tmp_path / f"worker-ab-01-{os.getpid()}.{name}" for name in ("out", "err"))
    out.touch()
    err.write_text("of a trial before\n")
    monkeypatch.setattr(trial_log, "output_files", lambda: [str(out), str(err)])
    monkeypatch.setattr(trial_log.platform, "node", lambda: "gpu-1")
    return err


def kept(files: SearchFiles, lost: bool = False) -> list[str]:
    return read_output(files.lost_log(3) if lost else files.log(3))[1:]


def test_what_is_new_is_kept_while_a_trial_runs(files: SearchFiles, err: Path) -> None:
    log = TrialLog(str(files.root), 3, every_s=1e6)
    with log:
        log.look()
        assert not files.logs.exists(), "a trial that writes nothing costs no file"
        err.write_text("of a trial before\nUserWarning: slow\n")
        log.look()
        named = f"# gpu-1, process {os.getpid()}, its last lines"
        assert kept(files) == [named, "UserWarning: slow"]
        before = files.log(3).stat().st_mtime_ns
        log.look()
        assert files.log(3).stat().st_mtime_ns == before
        other = err.with_name("other.err")
        other.write_text("of rank 0\n")
        for _ in range(2):
            log.also(Output("gpu-1, process 8", (str(other),), (0,)))
        log.look()
        assert kept(files) == [named, "UserWarning: slow", "# gpu-1, process 8, its last lines", "of rank 0"]
        last = err.with_name("last.err")
        last.write_text("of rank 0 of more\n")
        log.also(Output("gpu-1, process 9", (str(last),), (0,)))
        log.look()
        assert [line for line in kept(files) if line.startswith("#")] == [
            named,
            "# gpu-1, process 9, its last lines",
        ], "its own, and of those that train with it the last one"
    last.write_text("of rank 0 of more\nmore\n")
    log.look()
    assert kept(files)[-1] == "of rank 0 of more", "another trial's"


def test_a_trial_that_has_failed_says_where(files: SearchFiles, err: Path) -> None:
    with TrialLog(str(files.root), 3, every_s=1e6) as log:
        log.failed(ValueError("planted"))
        log.look()
    assert kept(files) == [f"# gpu-1, process {os.getpid()}, where the error came from", "ValueError: planted"]


def test_a_trial_that_failed_as_a_training_may_has_no_file_unless_something_was_said(
    files: SearchFiles, err: Path
) -> None:
    with TrialLog(str(files.root), 3, every_s=1e6) as log:
        log.failed(TrialFailure("diverged", "loss is nan"))
        assert not files.logs.exists()
        err.write_text("of a trial before\nRuntimeWarning: overflow\n")
        log.failed(TrialFailure("diverged", "loss is nan"))
    assert kept(files)[1:] == ["RuntimeWarning: overflow"]


def test_what_is_lost_stands_beside_what_goes_on_and_is_kept_once(files: SearchFiles, err: Path) -> None:
    with TrialLog(str(files.root), 3, every_s=1e6) as log:
        log.lost(FaultOfWorker("device", "CUDA error"))
    assert not files.log(3).exists()
    own = kept(files, lost=True)
    assert own[-1].endswith("(device): CUDA error")
    trial_log._keep(str(files.root), 3, os.getpid())
    assert kept(files, lost=True) == own


def test_of_a_process_that_has_died_its_machine_keeps_the_last_lines(files: SearchFiles, err: Path) -> None:
    for session, said in (("aa", "of another process with this number"), ("cd", "Fatal Python error: Segmentation")):
        err.with_name(f"worker-{session}-01-4321.err").write_text(f":job_id:01\n{said}\n")
    os.utime(err.with_name("worker-aa-01-4321.err"), (1, 1))
    trial_log._keep(str(files.root), 3, 4321)
    assert kept(files, lost=True) == [
        "# gpu-1, process 4321, its last lines",
        "Fatal Python error: Segmentation",
    ]
    err.with_name("worker-cd-01-432.err").write_text("of a shorter number\n")
    trial_log._keep(str(files.root), 3, 432)
    assert kept(files, lost=True) == ["# gpu-1, process 432, its last lines", "of a shorter number"]
    trial_log._keep(str(files.root), 3, 4321)
    trial_log._keep(str(files.root), 3, 999)
    trial_log._keep("nowhere://s", 3, 432)
    assert kept(files, lost=True)[0] == "# gpu-1, process 4321, its last lines", "one without files changes nothing"
