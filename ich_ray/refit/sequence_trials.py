"""One trial of a search for a sequence model: features in, and the weights of its best report kept.

Handed to the driver of every search in place of `train_model`. A trial's checkpoints are gone when it has ended; what
becomes part of a bundle is the state of its best report, kept beside them in `weights/`, by the seed of the trial.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.errors import IchRayError
from ich_ray.storage import SearchFiles, locate, remove

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.results import Objective, TrialResult
    from ich_ray.search.tune.trial import TrialSettings
    from ich_ray.training.data_parallel import Shard
    from ich_ray.training.parts import Progress

__all__ = ["BestStates", "SequenceTrainer", "best_state", "keep_only"]

_NAME = re.compile(r"(\d{12})=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\.safetensors", re.ASCII)


@dataclass(frozen=True)
class SequenceTrainer:
    """Trains a sequence model on the features that lie in the folder of its search.

    Attributes:
        key: of the features.
        labels: that the network of the bundle answers, `any` last.
    """

    key: str
    labels: tuple[str, ...]

    def __call__(
        self,
        parameters: SequenceParameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: UPath | None,
        shard: Shard | None = None,
    ) -> Generator[Progress, None, None]:
        import torch

        from ich_ray.refit.bundle_features import open_features
        from ich_ray.training.parts import TrainingBudget
        from ich_ray.training.sequence_loop import train_sequence
        from ich_ray.training.sequence_set import SequenceSet
        from ich_ray.training.state import TrainingState

        del shard  # such a network trains in one process
        torch.set_num_threads(max(1, int(settings.cpus)))
        device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        files = SearchFiles(locate(settings.search))
        features = open_features(files, dataset, self.key)
        rows = [dataset.role(role).rows for role in ("train", "validation")]
        train, validation = (SequenceSet.of(dataset, one, features.of_rows(one), self.labels, self.key) for one in rows)
        state = TrainingState.load(resume) if resume else None
        best = BestStates(files.weights_of(seed), settings.objective, state.images_seen if state else 0)
        budget = TrainingBudget(settings.images, settings.report_every)
        keys: dict[str, Any] = {"device": device, "trials": settings.neighbors, "precision": settings.precision}
        steps = train_sequence(parameters, train, validation, budget=budget, seed=seed, resume=state, **keys)
        for progress in steps:
            best.offer(progress)
            yield progress


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

    def offer(self, progress: Progress) -> None:
        """Keep the state of a report if it is the best."""
        value = float(progress.metrics.get(self.objective.metric, math.nan))
        if not math.isfinite(value) or (self.kept and not self.objective.better(value, self.kept[-1][1])):
            return
        progress.state().save(self._file(progress.images_seen, value))
        self.kept.append((progress.images_seen, value))
        for images, before in self.kept[:-2]:
            self._file(images, before).unlink(missing_ok=True)
        self.kept = self.kept[-2:]

    def _file(self, images: int, value: float) -> UPath:
        return self.folder / f"{images:012d}={value!r}.safetensors"


def best_state(folder: UPath, trial: TrialResult) -> UPath:
    """The file of the state of a trial's best report.

    Raises:
        IchRayError: it is not there.
    """
    best = trial.best_report
    found = [path for images, _, path in _states(folder) if best and images == best.images_seen]
    if not found:
        raise IchRayError(
            f"{folder}: the weights of trial {trial.number} must be there, got none; remove the search for a sequence "
            "model and run it again"
        )
    return found[0]


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
