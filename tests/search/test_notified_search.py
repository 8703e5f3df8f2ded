"""A search of the command line that tells a stand-in for a webhook how it goes, and what of it others can read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ich_ray.search.run import run_search
from tests.notify.webhook import running_webhook
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeTrainer

TOKEN = "s3cretw0rd"  # noqa: S105
REAL_SPACE = """
name: told
budget: {images: 200, report_every: 200, first_rung: 200}
parameters: {architecture: plain_cnn, blocks: 1, filters: 4, dense: 0, learning_rate: {loguniform: [1e-3, 1e-2]}}
"""
LONG_S = 300


def holds_token(folder: Path) -> list[str]:
    """Files below a folder that hold the token; Ray's own may come and go."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and TOKEN.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return found


class Watched:
    """What of a process, and of those that it has started, others can read; once its Ray is there."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.sessions: set[str] = set()
        self.found: list[object] = []
        self._forked: set[psutil.Process] = set()

    def look(self) -> None:
        try:
            family = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
            commands = {process: process.cmdline() for process in family}
            inherited = [process for process in family[1:] if TOKEN in str(process.environ())]
        except psutil.Error:  # one has ended meanwhile
            return
        text = " ".join(word for words in commands.values() for word in words)
        self.sessions |= {*re.findall(r"/[^\s=,\"']*/session_[0-9][^/\s,\"']*", text)}
        if not self.sessions:
            return
        logs = [name for session in self.sessions for name in holds_token(Path(session))]
        # Between fork and exec a child shows what its parent was started with; at the next look it does no more.
        stayed, self._forked = self._forked.intersection(inherited), {*inherited}
        self.found += [*logs, *stayed, *(words for words in commands.values() if TOKEN in " ".join(words))]


@pytest.mark.slow
def test_the_address_stands_nowhere_where_others_read(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", patients=40)
    (tmp_path / "space.yaml").write_text(REAL_SPACE)
    out, said = tmp_path / "s", tmp_path / "said.txt"
    command = ["search", str(tmp_path / "data"), "--space", str(tmp_path / "space.yaml"), "--out", str(out)]
    with running_webhook() as webhook, said.open("w") as file:
        search = subprocess.Popen(
            [sys.executable, "-m", "ich_ray.cli", *command, "--trials", "2", "--notify", f"{webhook.url}/{TOKEN}"],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        watched = Watched(search.pid)
        deadline = time.monotonic() + LONG_S
        while search.poll() is None and time.monotonic() < deadline:
            watched.look()
            time.sleep(0.2)
    assert search.returncode == 0, said.read_text()
    assert watched.sessions, "nobody looked while it ran"
    assert watched.found == []
    texts = {message["text"] for message in webhook.messages}
    assert len(texts) == 1, "two trials are the first ones, and nothing went wrong"
    assert texts.pop().startswith(
        "search told: has ended: 2 of 2 trials ended (2 completed, 0 pruned, 0 failed), 400 im"
    )
    assert set(webhook.paths) == {f"/{TOKEN}"}
    assert TOKEN not in said.read_text()
    assert holds_token(out) == []


@pytest.mark.slow
def test_a_dead_address_costs_a_search_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "data", patients=20)
    (tmp_path / "space.yaml").write_text(SPACE)
    said: list[str] = []
    monkeypatch.setattr("ich_ray.notify.notifier._LAST_WAIT_S", float(LONG_S))
    monkeypatch.setattr("ich_ray.notify.notifier.say", said.append)
    call = (tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s")
    found = run_search(*call, trials=2, notify=f"http://127.0.0.1:9/{TOKEN}", _trainer=FakeTrainer())
    assert [trial.state in {"completed", "pruned"} for trial in found.trials] == [True, True]
    assert [line.partition("(")[0] for line in said] == ["notify: a message could not be sent "]
    assert TOKEN not in str(said)
    assert holds_token(tmp_path) == []
