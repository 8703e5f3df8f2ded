"""Independent draws, each trained to its end, by Ray Tune without a searcher and a scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.searchers import ray_tune

if TYPE_CHECKING:
    from benchmarks.searchers.task import Task


def search(task: Task) -> None:
    ray_tune.search(task, random=True)
