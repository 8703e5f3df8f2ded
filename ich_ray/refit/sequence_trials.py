"""One trial of a search for a sequence model, handed to the driver in place of `train_model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.storage import SearchFiles, locate

if TYPE_CHECKING:
    from collections.abc import Generator

    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.search.tune.trial import TrialSettings
    from ich_ray.training.data_parallel import Shard
    from ich_ray.training.parts import Progress

__all__ = ["SequenceTrainer"]


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

        from ich_ray.refit.bundle_features import open_features, read_set
        from ich_ray.training.parts import TrainingBudget
        from ich_ray.training.sequence_loop import train_sequence
        from ich_ray.training.state import TrainingState

        del shard  # such a network trains in one process
        torch.set_num_threads(max(1, int(settings.cpus)))
        device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
        files = SearchFiles(locate(settings.search))
        features = open_features(files, dataset, self.key)
        slices = (dataset.role(role) for role in ("train", "validation"))
        train, validation = (read_set(one, features, self.labels) for one in slices)
        state = TrainingState.load(resume) if resume else None
        budget = TrainingBudget(settings.images, settings.report_every)
        keys: dict[str, Any] = {"device": device, "trials": settings.neighbors, "precision": settings.precision}
        steps = train_sequence(parameters, train, validation, budget=budget, seed=seed, resume=state, **keys)
        yield from steps
