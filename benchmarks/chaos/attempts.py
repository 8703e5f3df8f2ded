"""What each attempt at a trial has computed, by its own count; the ledger knows only what was reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Attempt:
    """One attempt, from the images that it resumed to those that it had computed at its last step."""

    search: str
    seed: int
    node: str
    pid: int
    started: float
    last: float
    resumed: int
    computed: int

    @property
    def is_alive(self) -> bool:
        return psutil.pid_exists(self.pid)

    @classmethod
    def read(cls, path: Path) -> Attempt | None:
        """None where the file is not begun; the last line may be cut short by a kill."""
        lines = path.read_text().splitlines(keepends=True)
        if not lines or not lines[0].endswith("\n"):
            return None
        node, pid, resumed, started = lines[0].split()
        whole = [line for line in lines[1:] if line.endswith("\n")]
        computed, last = whole[-1].split() if whole else (resumed, started)
        search, seed, _ = path.stem.rsplit("-", 2)
        return cls(search, int(seed), node, int(pid), float(started), float(last), int(resumed), int(computed))


def attempts_of(folder: Path, search: str) -> dict[int, list[Attempt]]:
    """Attempts by the seed of their trial, in order."""
    found: dict[int, list[Attempt]] = {}
    for path in folder.glob(f"{search}-*.txt"):
        if attempt := Attempt.read(path):
            found.setdefault(attempt.seed, []).append(attempt)
    return {seed: sorted(attempts, key=lambda one: one.started) for seed, attempts in found.items()}


def running(folder: Path, search: str) -> list[Attempt]:
    """The newest attempt at each trial whose process is alive; a process serves one after the other."""
    newest: dict[int, Attempt] = {}
    for attempts in attempts_of(folder, search).values():
        for one in attempts:
            if one.pid not in newest or one.started > newest[one.pid].started:
                newest[one.pid] = one
    return [one for one in newest.values() if one.is_alive]
