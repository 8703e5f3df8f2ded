"""The weights of a trial's best report, kept when its checkpoints go because it has ended.

In `weights/`, by the seed of the trial, where a search is asked to keep them.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Protocol

from ich_ray.errors import IchRayError
from ich_ray.progress import say
from ich_ray.storage import remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from upath import UPath

    from ich_ray.training.checkpoint_store import SavedState
    from ich_ray.trial_records import Objective, TrialResult

__all__ = ["BestStates", "best_state", "keep_only"]

# A report that was made again is the same report up to this part of its value.
_SAME = 1e-3
_NAME = re.compile(r"(\d{12})=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\.safetensors", re.ASCII)


class _Progress(Protocol):
    @property
    def images_seen(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


class BestStates:
    """The state of a trial's best report so far, and of the best one before it.

    The latter is kept until the trial's checkpoint can be of the newer report: a process that dies before comes back to
    the one before.
    """

    def __init__(self, folder: UPath, objective: Objective, images_seen: int) -> None:
        self.folder, self.objective = folder, objective
        there = _states(folder)
        for images, _, path in there:
            if images > images_seen:
                path.unlink(missing_ok=True)
        self.kept = [(images, value) for images, value, _ in there if images <= images_seen]

    def offer(self, progress: _Progress, state: Callable[[], SavedState]) -> None:
        """Keep the state of a report, which is asked for only then, if it is the best."""
        value = float(progress.metrics.get(self.objective.metric, math.nan))
        if not self.objective.improves(value, self.kept[-1][1] if self.kept else None):
            return
        state().save(self._file(progress.images_seen, value))
        self.kept.append((progress.images_seen, value))
        for images, before in self.kept[:-2]:
            self._file(images, before).unlink(missing_ok=True)
        self.kept = self.kept[-2:]

    def _file(self, images: int, value: float) -> UPath:
        return self.folder / f"{images:012d}={value!r}.safetensors"


def best_state(folder: UPath, trial: TrialResult) -> UPath:
    """The file of the state of a trial's best report.

    An attempt that was killed may have made its last report without a state: the next one makes it again, and that
    state is taken for it, though accelerators may differ in the last digits. Where an attempt fell back and gave other
    values, that report has none: then the best state that is there.

    Raises:
        IchRayError: it is not there.
    """
    best = trial.best_report
    there = _states(folder)
    told = (best.metrics.get(trial.objective.metric) if best else None) or 0.0
    same = [(abs(value - told), path) for images, value, path in there if best and images == best.images_seen]
    nearest, path = min(same, key=lambda one: one[0], default=(math.inf, folder))
    if nearest <= _SAME * abs(told):
        return path
    if best is None or not there:
        raise IchRayError(
            f"{folder}: the weights of trial {trial.number} must be there, got none; search again in another folder"
        )
    images, value, path = max(there, key=lambda state: (trial.objective.sign * state[1], state[0]))
    say(
        f"trial {trial.number}: the weights of its best report, after {best.images_seen:,} images, are gone, as an "
        f"attempt went back before it; those after {images:,} are taken ({trial.objective.metric} {value:.4f})"
    )
    return path


def keep_only(weights: UPath, seeds: Iterable[int]) -> None:
    """Remove the states of all trials but some."""
    kept = {str(seed) for seed in seeds}
    for folder in weights.iterdir() if weights.exists() else ():
        if folder.name not in kept:
            remove(folder)


def _states(folder: UPath) -> list[tuple[int, float, UPath]]:
    """Images, value and file of each state that is kept; files of other names are not ours."""
    paths = [*folder.iterdir()] if folder.exists() else []
    found = [(told, path) for path in paths if (told := _NAME.fullmatch(path.name))]
    return sorted((int(told[1]), float(told[2]), path) for told, path in found)
