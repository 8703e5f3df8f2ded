"""What a training is given and what it gives: its budget, its parts and its reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import torch

from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.training.loss import CrossEntropy
from ich_ray.training.memory import out_of_memory
from ich_ray.trial_records import ExecutionInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from ich_ray.training.augmentation import Augmentation
    from ich_ray.training.loss import LossOf
    from ich_ray.training.state import TrainingState
    from ich_ray.usage import ReportUsage
    from ich_ray.vocabulary import Precision

__all__ = ["Parts", "Progress", "Run", "TrainingBudget", "execution_of", "reports"]


@dataclass(frozen=True)
class TrainingBudget:
    """How many training images a trial may see, and how often it reports."""

    images: int
    report_every: int

    def __post_init__(self) -> None:
        if not 0 < self.report_every <= self.images:
            raise ConfigError(
                f"budget: 0 < report_every <= images must hold, got report_every {self.report_every}, images "
                f"{self.images}"
            )


@dataclass(frozen=True)
class Parts:
    """What a training is made of besides what its hyperparameters say.

    Attributes:
        loss: makes the loss of `Hyperparameters.loss` and the targets of all training slices.
        augmentation: of training images, in place of that of the hyperparameters, if any; frozen layers then compute
            every image again, as no two are the same.
    """

    loss: LossOf = CrossEntropy
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class Progress:
    """One report.

    Attributes:
        images_seen: training images shown so far.
        metrics: on the validation slices: average_precision, roc_auc, f2 and f2_threshold (the best threshold on these
            very slices), log_loss; and train_loss, the mean weighted loss since the report before. Log loss and
            threshold are of probabilities corrected for the class weights (`prior_shift`), so that they compare with
            `floors`. Beside them `training.validation.VALIDATION_METRICS`. NaN where undefined. Without
            validation slices train_loss alone.
        elapsed_s: time in training and validation so far, over all attempts.
        images_per_s: training images per second since the report before, without validation.
        usage: what it took since the report before.
        setup: how it is computed; of the first worker if there are several.
        logits: of the validation slices, float32 `[n, labels]`, corrected for the class weights; None without any.
    """

    images_seen: int
    metrics: dict[str, float]
    elapsed_s: float
    images_per_s: float
    usage: ReportUsage = field(compare=False)
    setup: ExecutionInfo
    logits: NDArray[np.float32] | None = field(repr=False, compare=False)
    _capture: Callable[[], TrainingState] = field(repr=False, compare=False)

    def state(self) -> TrainingState:
        """A copy of the state at this report, on the CPU. Take it before asking for the next report."""
        return self._capture()


class Run(Protocol):
    """A training that goes on to its next report."""

    images_seen: int

    def until(self, end: int) -> None:
        """Train to exactly `end` images."""

    def report(self) -> Progress:
        """Where it stands."""


AnyRun = TypeVar("AnyRun", bound=Run)


def reports(run: AnyRun, start: Callable[[AnyRun], None], budget: TrainingBudget) -> Iterator[Progress]:
    """Start a run and yield its reports; the last one is at `budget.images`.

    Args:
        run: that nothing else refers to, so that its memory is free when a failure is raised.
        start: begins it.
        budget: images to show and images between reports.

    Raises:
        TrialFailure: `out_of_memory`, or what the run raises.
    """
    try:
        start(run)
        while run.images_seen < budget.images:
            run.until(min(budget.images, (run.images_seen // budget.report_every + 1) * budget.report_every))
            yield run.report()
    except RuntimeError as error:
        detail = out_of_memory(error)
        if detail is None:
            raise
    else:
        return
    del run  # outside of the handler nothing else holds it, and others on the device need its memory
    raise TrialFailure("out_of_memory", detail)


def execution_of(
    device: torch.device, images: Literal["device", "host"], mode: Precision, workers: int = 1
) -> ExecutionInfo:
    """How a training on this device is computed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
    return ExecutionInfo(device=name, workers=workers, images=images, mode=mode)
