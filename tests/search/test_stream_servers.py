"""Streams as people have them: followers that are killed, and the servers that read what they write."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.ledger import Verdict
from ich_ray.search.run import run_search
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeTrainer
from tests.search.streams import DRAWN, READERS, begin, end, held, report, usable

pytestmark = pytest.mark.slow
PATIENCE_S = 240.0  # of a loaded machine


def wait_until(told: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not told():
        assert time.monotonic() < until
        time.sleep(0.1)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def follow(search: Path, target: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "ich_ray.cli", "export", str(search), "--follow", "--to", target)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> Any:
    try:
        with urlopen(url, timeout=30) as answer:  # noqa: S310  (of our own server)
            return json.load(answer)
    except (URLError, HTTPException, OSError, ValueError):
        return None


@pytest.mark.parametrize("name", READERS)
def test_a_follower_that_is_killed_goes_on_and_writes_each_report_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, ledger = usable(name, tmp_path, monkeypatch), begin(tmp_path / "s", trials=2)
    ledger.add(DRAWN)
    expected: list[tuple[int, float]] = []

    def written() -> bool:
        """Whether the tracker holds anything of the newest trial; W&B keeps reports to itself."""
        with suppress(Exception):  # the follower is at work on it
            return 1 in (now := held(name, target)) and (name == "wandb" or now[1][0] == expected)
        return False

    for kill in range(3):
        for images in (200 * kill + 100, 200 * kill + 200):
            report(ledger, 0, images, images / 1024)
            report(ledger, 1, images, images / 1024)
            expected.append((images, images / 1024))
        with process(*follow(tmp_path / "s", target)) as follower:
            if name == "wandb":
                wait_until(lambda kill=kill: len([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == 2 * (kill + 1))
            else:
                wait_until(written)
            follower.kill()
    ledger.finish(0, Verdict("completed"))
    with process(*follow(tmp_path / "s", target)) as follower:
        report(ledger, 1, 900, 0.5)
        ledger.finish(1, Verdict("pruned", "rung_300"))
        end(ledger)
        said, _ = follower.communicate(timeout=PATIENCE_S)
        assert (follower.returncode, b"Error" in said) == (0, False)
    assert held(name, target) == {0: (expected, "completed"), 1: ([*expected, (900, 0.5)], "pruned")}


def test_tensorboard_shows_a_search_while_it_runs(tmp_path: Path) -> None:
    ledger, events, port = begin(tmp_path / "s", trials=1), tmp_path / "events", free_port()
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=trial-00000&tag=average_precision"
    serve = ("--logdir", str(events), "--port", str(port), "--host", "127.0.0.1", "--reload_interval", "1")

    def shows(*steps: int) -> bool:
        return [step for _, step, _ in get(url) or ()] == [*steps]

    report(ledger, 0, 100, 0.5)
    with process(sys.executable, "-m", "tensorboard.main", *serve):
        with process(*follow(tmp_path / "s", f"tensorboard={events}")) as follower:
            wait_until(lambda: shows(100))
            report(ledger, 0, 200, 0.25)
            wait_until(lambda: shows(100, 200))
            follower.kill()
        (file,) = (events / "trial-00000").iterdir()
        with file.open("ab") as torn:
            torn.write(b"\x40\x00\x00\x00\x00\x00\x00\x00\x12\x34")
        report(ledger, 0, 300, 0.75)
        with process(*follow(tmp_path / "s", f"tensorboard={events}")):
            wait_until(lambda: shows(100, 200, 300))


@pytest.mark.parametrize("file", ["t.db", "t.journal"])
def test_optuna_dashboard_shows_a_search_while_it_runs(file: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    ledger, port = begin(tmp_path / "s", trials=2), free_port()
    storage = f"sqlite:///{tmp_path / file}" if file == "t.db" else str(tmp_path / file)
    url = f"http://127.0.0.1:{port}/api/studies"
    serve = (storage, "--port", str(port), "--host", "127.0.0.1", "--server", "wsgiref")

    def states() -> list[tuple[str, list[Any]]]:
        studies = (get(url) or {}).get("study_summaries", [])
        study = get(f"{url}/{studies[0]['study_id']}") if studies else None
        return [(one["state"], one["intermediate_values"]) for one in (study or {}).get("trials", [])]

    report(ledger, 0, 100, 0.5)
    with process(*follow(tmp_path / "s", f"optuna={tmp_path / file}")) as follower:
        wait_until((tmp_path / file).exists)
        serving = "from optuna_dashboard._cli import main; main()"
        with process(sys.executable, "-c", serving, *serve):
            wait_until(lambda: states() == [("Running", [{"step": 100, "value": 0.5}])])
            ledger.finish(0, Verdict("completed"))
            ledger.add(DRAWN)
            wait_until(lambda: [state for state, _ in states()] == ["Complete", "Running"])
            ledger.finish(1, Verdict("failed", "diverged"))
            end(ledger)
            assert follower.wait(PATIENCE_S) == 0
            wait_until(lambda: [state for state, _ in states()] == ["Complete", "Fail"])


def test_an_mlflow_server_that_was_down_is_given_what_it_lacks(tmp_path: Path) -> None:
    if find_spec("mlflow") is None or find_spec("graphene") is None:
        pytest.skip("needs MLflow with its server: pip install mlflow")
    ledger, port = begin(tmp_path / "s", trials=1), free_port()
    url, database = f"http://127.0.0.1:{port}", f"sqlite:///{tmp_path / 'runs.db'}"
    serve = (sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(port))
    serve += ("--host", "127.0.0.1", "--workers", "1", "--default-artifact-root", str(tmp_path / "artifacts"))

    def shows(reports: list[tuple[int, float]], state: str) -> bool:
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException, AttributeError):  # not begun
            return held("mlflow", f"mlflow={database}") == {0: (reports, state)}
        return False

    report(ledger, 0, 100, 0.5)
    with process(*follow(tmp_path / "s", f"mlflow={url}")) as follower:
        with process(*serve):
            wait_until(lambda: shows([(100, 0.5)], "running"))
        report(ledger, 0, 200, 0.25)
        assert follower.stdout is not None
        for line in follower.stdout:
            if re.match(rb"mlflow=http.*cannot be written now \(MlflowException: .*tried again with pauses", line):
                break
        report(ledger, 0, 300, 0.75)
        with process(*serve):
            wait_until(lambda: shows([(100, 0.5), (200, 0.25), (300, 0.75)], "running"))
            ledger.finish(0, Verdict("completed"))
            end(ledger)
            assert follower.wait(PATIENCE_S) == 0
            assert shows([(100, 0.5), (200, 0.25), (300, 0.75)], "completed")


def test_a_search_and_its_resume_are_streamed_by_processes_beside_them(tmp_path: Path) -> None:
    data, space, out = tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s"
    make_dataset(data, patients=20)
    space.write_text(SPACE)
    targets = [f"tensorboard={tmp_path / 'events'}", f"optuna={tmp_path / 't.db'}", "optuna=/proc/none/t.db"]
    with connected(cpus=2):
        for trials, resume in ((3, False), (5, True)):
            keys: dict[str, Any] = {"concurrent": 2, "_trainer": FakeTrainer(), "export": targets}
            run_search(data, space, out, trials=trials, resume=resume, **keys)
    trials_ = open_search(out).trials
    curves = [[(one.images_seen, one.metrics["average_precision"]) for one in trial.reports] for trial in trials_]
    assert len(curves) == 5
    study = held("sqlite", targets[1])
    assert [study[number][0] for number in range(5)] == curves
    assert [study[number][1] for number in range(5)] == [trial.state for trial in trials_]
    events = held("tensorboard", targets[0])
    assert [[step for step, _ in events[number][0]] for number in range(5)] == [
        [images for images, _ in curve] for curve in curves
    ]
