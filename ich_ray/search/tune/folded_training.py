"""A trial of several networks, one after the other, each judged on a fold that it has not seen.

To the trial function it is a trainer like others, whose `images_seen` count on from network to network: that number
alone says which fold is in training and where it stands. A report of a later fold holds the metrics of all folds so
far, each at as many images as the network in training has seen, so that equal folds are compared at equal images.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ich_ray.errors import IntegrityError
from ich_ray.search.ledger import trial_seed
from ich_ray.statistics.pooling import pooled_metrics
from ich_ray.trial_records import FoldNote, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.out_of_fold import OutOfFold
    from ich_ray.search.trial_output import Output
    from ich_ray.statistics.pooling import FoldPart
    from ich_ray.training.checkpoint_store import SavedState
    from ich_ray.trial_records import ExecutionInfo
    from ich_ray.usage import ReportUsage

__all__ = ["FoldProgress", "FoldedTraining"]


@dataclass(frozen=True)
class FoldProgress:
    """One report of one fold.

    Attributes:
        images_seen: by all networks of the trial so far.
        metrics: of all folds so far.
        elapsed_s: as `images_seen`.
        number: of the fold.
        of_network: its own report.
        usage: as of that.
    """

    images_seen: int
    metrics: dict[str, float]
    elapsed_s: float
    setup: ExecutionInfo | None
    number: int
    of_network: Any
    usage: ReportUsage | None = None

    @property
    def output(self) -> Output | None:
        """What a process beside that of the trial writes, if one trains the network."""
        output: Output | None = getattr(self.of_network, "output", None)
        return output

    def state(self) -> SavedState:
        """Of the network in training; at its end nobody needs it, and it makes a checkpoint like others."""
        state: SavedState = self.of_network.state()
        return state


class FoldedTraining:
    """The trainer of a trial with folds.

    Args:
        trainer: of each network.
        out_of_fold: the folds of the search, and where what is said of them is kept.
        metric: of its objective.
        images: the budget of a network.
        number: of the trial.
    """

    def __init__(
        self,
        trainer: Callable[..., Generator[Any, None, None]],
        out_of_fold: OutOfFold,
        metric: str,
        images: int,
        number: int,
    ) -> None:
        self._trainer, self._kept = trainer, out_of_fold
        self._metric, self._images, self._number = metric, images, number
        self._parts: dict[tuple[int, int], FoldPart] = {}  # by fold and images of its network
        self._images_seen, self._elapsed_s = 0, 0.0

    def resume(self, reports: Sequence[Any]) -> str:
        """Go on after these reports, if what they refer to is there; else why not."""
        found = [Report(**report, time=0.0) for report in reports]
        notes = [report.fold for report in found if report.fold]
        places = [note.number * self._images + note.images_seen for note in notes]
        if not found or places != [report.images_seen for report in found]:
            return "reports without their folds"
        if notes[-1].number >= len(self._kept.folds):
            return "reports of more folds than the search has"
        first, *later = [[note.images_seen for note in group] for _, group in groupby(notes, lambda note: note.number)]
        if len(later) != notes[-1].number or any(one != first[: len(one)] for one in later):
            return "reports of some folds and not of others"
        try:
            for note in notes:
                self._parts[note.number, note.images_seen] = self._kept.read(note.number, note.logits)
        except (OSError, IntegrityError) as error:
            self._parts = {}
            return str(error)[:400]
        self._images_seen = found[-1].images_seen
        ended = [report.elapsed_s for report in found if report.fold and report.fold.whole]
        self._elapsed_s = ended[-1] if ended else 0.0
        return ""

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,  # noqa: ARG002  (a trainer's; each network has its view of it)
        settings: Any,
        seed: int,
        resume: UPath | None,
    ) -> Generator[FoldProgress, None, None]:
        """A progress for each report of each network that is left; `resume` is the state of the one in training."""
        first, within = divmod(self._images_seen, self._images)
        for fold in range(first, len(self._kept.folds)):
            state = resume if fold == first and within else None
            own_seed = trial_seed(seed, fold) if fold else seed
            view, before_s = self._kept.folds.view(fold), self._elapsed_s
            with closing(self._trainer(parameters, view, settings, own_seed, state)) as steps:
                for progress in steps:
                    self._elapsed_s = before_s + progress.elapsed_s
                    yield self._progress(fold, progress)

    def _progress(self, fold: int, progress: Any) -> FoldProgress:
        images = progress.images_seen
        self._parts[fold, images] = self._kept.part(fold, progress.logits)
        metrics = pooled_metrics([self._parts[one, images] for one in range(fold + 1)], _measured)
        metrics["train_loss"] = progress.metrics["train_loss"]
        return FoldProgress(
            images_seen=fold * self._images + images,
            metrics=metrics,
            elapsed_s=self._elapsed_s,
            setup=progress.setup,
            number=fold,
            of_network=progress,
            usage=getattr(progress, "usage", None),
        )

    def note(self, progress: FoldProgress) -> FoldNote:
        """What the ledger says of a fold, once its logits are written."""
        value = float(progress.of_network.metrics.get(self._metric, math.nan))
        return FoldNote(
            number=progress.number,
            images_seen=progress.of_network.images_seen,
            whole=progress.of_network.images_seen >= self._images,
            value=value if math.isfinite(value) else None,
            logits=self._kept.save(self._number, progress.images_seen, progress.of_network.logits),
        )


def _measured(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, float]:
    """The metrics of a report, of logits that mean probabilities.

    None that others add: those are of a network's own logits.
    """
    from ich_ray.training.validation import label_metrics, own_metrics
    from ich_ray.vocabulary import LABELS

    metrics = own_metrics(targets[:, -1], logits[:, -1], 0.0)
    if logits.shape[1] == len(LABELS):
        metrics |= label_metrics(targets, logits, [0.0] * len(LABELS), LABELS)
    return metrics
