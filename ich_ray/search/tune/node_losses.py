"""Which deaths of trial processes were those of their machines, and so none of their trials' retries.

Ray may tell of the process long before it tells of its machine: where a machine is shut down its processes end one
after another, and one that has lost its power is missed after half a minute. So a death is counted as a retry only
when its machine has turned out to live. Knows Tune's trials; asks Ray nothing itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ray.tune.experiment import Trial

__all__ = ["Death", "NodeLosses"]

# Ray's default settings give a node that does not answer 65 s.
_DECIDED_AFTER_S = 120.0


@dataclass
class Death:
    """The end of a process that Tune starts again elsewhere.

    Attributes:
        time: by the clock that does not go back; `noted`, since 1970.
        images_seen: that its trial had reported.
        is_retry: whether it was counted against its trial.
    """

    trial: Trial
    node: str
    time: float
    images_seen: int = 0
    noted: float = 0.0
    is_retry: bool = False

    @property
    def number(self) -> int:
        return int(self.trial.config["number"])

    def count(self) -> None:
        if not self.is_retry:
            self.is_retry, self.trial.max_failures = True, self.trial.max_failures - 1

    def pardon(self) -> None:
        if self.is_retry:
            self.is_retry, self.trial.max_failures = False, self.trial.max_failures + 1


class NodeLosses:
    """Keeps the count of Tune's retries.

    Args:
        is_gone: whether a node is gone or will be taken away.
        now: a clock that does not go back.
    """

    def __init__(self, is_gone: Callable[[str], bool], now: Callable[[], float] = time.monotonic) -> None:
        self._is_gone, self._now = is_gone, now
        self._nodes: dict[int, str] = {}
        self._failures: dict[int, int | None] = {}
        self._open: list[Death] = []

    def start(self, trial: Trial, node: str) -> None:
        """An attempt has begun; on the node of a death before it, that node lives."""
        number = trial.config["number"]
        self._nodes[number] = node
        self._failures[number] = getattr(trial, "num_failures", None)
        for death in self._open:
            if death.trial is trial and death.node == node:
                death.count()

    def died(self, trial: Trial) -> str:
        """An attempt has ended without a word: its node if that is gone, else an empty string."""
        number = trial.config["number"]
        node, before = self._nodes.pop(number, ""), self._failures.pop(number, None)
        if not node or (before is not None and trial.num_failures == before):
            return node if node and self._is_gone(node) else ""  # Tune itself counts no death after a notice
        trial.max_failures += 1
        if self._is_gone(node):
            return node
        self._open.append(Death(trial, node, self._now(), trial.config.get("reported", 0), time.time()))
        return ""

    def forget(self, trial: Trial) -> None:
        """An attempt has ended with a word of why."""
        self._nodes.pop(trial.config["number"], None)

    def settle(self) -> Iterator[Death]:
        """Deaths whose machines are found to be gone; others are counted after a time."""
        still = []
        for death in self._open:
            if self._is_gone(death.node):
                death.pardon()
                yield death
            elif self._now() - death.time > _DECIDED_AFTER_S:
                death.count()
            else:
                still.append(death)
        self._open = still
