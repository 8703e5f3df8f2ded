"""The training loop of a sequence model: a generator that yields one `Progress` per report.

As that of networks (loop.py), and by the same rules, where an "image" is a series that is shown: reports land exactly
on multiples of `report_every`, the order of series depends on (seed, epoch) only, and noise and dropout are reseeded
from (seed, images_seen) at each report. So a resumed run repeats the undisturbed one bit for bit on a CPU. It knows
nothing of Ray, searches or files.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.model.schedule import ScheduleStep, rate_of
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from ich_ray.training.parts import Progress, TrainingBudget, execution_of, reports
from ich_ray.training.precision import autocast, precision_on
from ich_ray.training.sequence_batches import PlaceFeatures, sequence_logits, short_parts
from ich_ray.training.sequence_loss import SequenceLoss
from ich_ray.training.sequence_metrics import sequence_metrics
from ich_ray.training.state import TrainingState
from ich_ray.training.stream import Stream, mixed_seed, next_batch
from ich_ray.training.usage_meter import UsageMeter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.training.sequence_set import SequenceSet
    from ich_ray.vocabulary import Precision

__all__ = ["SequenceStart", "train_sequence"]


@dataclass(frozen=True, eq=False)
class SequenceStart:
    """Where a training begins, if not at weights that are drawn.

    Attributes:
        weights: of a network of the same parameters, with the normalization of its features.
        study_alone: train the study head and its attention; everything else, and so each slice's logit, stays.
    """

    weights: Mapping[str, torch.Tensor]
    study_alone: bool = False

    def begin(self, network: SequenceNetwork) -> list[nn.Parameter]:
        """Give a network these weights; which of them are trained."""
        network.load_state_dict(dict(self.weights))
        if self.study_alone:
            network.requires_grad_(False)
            network.attention.requires_grad_(True)
            network.study_head.requires_grad_(True)
        return [weight for weight in network.parameters() if weight.requires_grad]


def train_sequence(
    parameters: SequenceParameters,
    train: SequenceSet,
    validation: SequenceSet | None,
    *,
    budget: TrainingBudget,
    seed: int,
    device: torch.device | str = "cpu",
    resume: TrainingState | None = None,
    trials: int = 1,
    precision: Precision | None = None,
    start: SequenceStart | None = None,
) -> Iterator[Progress]:
    """Train one sequence model, yielding a `Progress` at each report; the last one is at `budget.images`.

    Seeds PyTorch's global generator. Metrics are those of a network on the validation slices whose label is known, and
    `study_average_precision`, `study_roc_auc` and `study_log_loss` of `any` on the studies; see `sequence_metrics`.

    Args:
        parameters: the draw.
        train: series to learn from.
        validation: series to report on; None where all patients train.
        budget: series to show and series between reports.
        seed: of weights, order, noise and dropout; on one CPU the same seed gives the same numbers.
        device: where to train.
        resume: a state of the same plan; reports before it are not repeated.
        trials: that share the device, each with an equal part of its memory.
        precision: on an accelerator; that of `resume` if it holds one, else this, else by rule (`training.precision`).
        start: where to begin; at weights that are drawn if not given. Such a training is not gone on with.

    Raises:
        TrialFailure: `diverged` when the loss or a logit is not finite, `out_of_memory`.
        ConfigError: there is nothing to learn from, or the state belongs to another plan.
    """
    yield from reports(
        _SequenceRun(parameters, train, validation, budget, seed, torch.device(device)),
        lambda run: run.start(resume, trials, precision, start),
        budget,
    )


class _SequenceRun:
    """A sequence model in training: what stays the same, and where it stands."""

    def __init__(
        self,
        parameters: SequenceParameters,
        train: SequenceSet,
        validation: SequenceSet | None,
        budget: TrainingBudget,
        seed: int,
        device: torch.device,
    ) -> None:
        self.parameters, self.train, self.validation = parameters, train, validation
        self.budget, self.seed, self.device = budget, seed, device
        self.stream = Stream(len(train), seed)
        self.plan = {
            "parameters": parameters.identity(),
            "seed": seed,
            "series": len(train),
            "data": train.fingerprint,
            "budget": budget.images,  # the rates depend on it
        }
        self.images_seen, self.elapsed_s = 0, 0.0

    def start(
        self,
        resume: TrainingState | None,
        trials: int,
        precision: Precision | None,
        begun: SequenceStart | None,
    ) -> None:
        self.loss = SequenceLoss(self.parameters, self.train, self.device)
        self.places = PlaceFeatures(self.train.features, self.train.order, self.device, trials)
        if self.validation is not None:
            self.validated = PlaceFeatures(self.validation.features, self.validation.order, self.device, trials)
        torch.manual_seed(self.seed)
        network = build_sequence_network(self.parameters, self.train.features.shape[1], len(self.train.labels))
        if resume is None and begun is None:
            network.normalize_by(*self.places.moments())
        trained = list(network.parameters()) if begun is None else begun.begin(network)
        self.network = network.to(self.device)  # its weights stay the same objects
        self.optimizer = build_optimizer(self.parameters.optimization, trained, self.device)
        self.precision = precision_on(self.device, (resume.precision if resume else None) or precision)
        self.meter = UsageMeter(self.device)
        if resume is not None:
            self._restore(resume)

    def until(self, end: int) -> None:
        """Train to exactly `end` series."""
        self.meter.begin()
        torch.manual_seed(mixed_seed(self.seed, self.images_seen, 0))
        first, total = self.images_seen, torch.zeros((), dtype=torch.float64, device=self.device)
        while self.images_seen < end:
            total += self._step(end)
        self.train_loss = float(total) / (end - first)
        self.meter.end(end - first)
        if not math.isfinite(self.train_loss):
            raise TrialFailure("diverged", f"the training loss is {self.train_loss} after {self.images_seen} series")

    def _step(self, end: int) -> torch.Tensor:
        """One optimizer step; the sum of its losses."""
        take = next_batch(self.parameters.batch_size, end - self.images_seen)
        fitted, step = self.parameters.optimization, ScheduleStep(self.images_seen, self.budget.images, len(self.train))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of(fitted, step)
        self.optimizer.zero_grad()
        series, total = self.stream.slices(self.images_seen, take), torch.zeros((), device=self.device)
        for part in short_parts(series, self.train.order.lengths):
            total += self._backward(part, take)
        clip_grad_norm_(self.network.parameters(), fitted.clip)
        self.optimizer.step()
        self.images_seen += take
        return total

    def _backward(self, part: NDArray[np.int64], take: int) -> torch.Tensor:
        """Add the gradient of a part of a batch; gradients of all parts are that of the batch."""
        with self.meter.waiting():
            batch = self.places.take(part)
        with autocast(self.precision, self.device):
            slices, study = self.network(batch.features, batch.places_mm, batch.mask)
        loss = self.loss(slices, study, batch, torch.from_numpy(part).to(self.device))
        torch.autograd.backward(loss / take)
        return loss.detach()

    def report(self) -> Progress:
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        logits: NDArray[np.float32] | None = None
        if self.validation is not None:
            order = self.validation.order
            logits, study = sequence_logits(self.network, self.validated, order, self.device, self.precision)
            if not (np.isfinite(logits).all() and np.isfinite(study).all()):
                raise TrialFailure("diverged", f"a validation logit is not finite after {self.images_seen} series")
            metrics = sequence_metrics(self.validation, logits, study)
        metrics["train_loss"] = self.train_loss
        validation_s = time.perf_counter() - started
        self.elapsed_s += self.meter.training_s + validation_s
        return Progress(
            self.images_seen,
            metrics,
            self.elapsed_s,
            self.meter.images_per_s,
            self.meter.usage(None if logits is None else validation_s),
            execution_of(self.device, self.places.where, self.precision),
            logits,
            self._capture,
        )

    def _capture(self) -> TrainingState:
        tensors = {f"weights.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        numbers = {"images_seen": self.images_seen, "elapsed_s": self.elapsed_s, "plan": self.plan}
        return TrainingState(copies, {**numbers, "precision": self.precision})

    def _restore(self, state: TrainingState) -> None:
        plan = state.numbers.get("plan")
        told = plan if isinstance(plan, dict) else {}
        same = {**told, "parameters": self.plan["parameters"]} == self.plan
        if not same or not self.parameters.is_same(told.get("parameters")):
            raise ConfigError(
                f"resume: the state must belong to the same parameters, seed, training series and budget, got {plan} "
                f"instead of {self.plan}; start without it"
            )
        self.network.load_state_dict(state.part("weights"))
        restore_optimizer(self.optimizer, state.part("optimizer"))
        self.images_seen, self.elapsed_s = state.images_seen, float(state.numbers["elapsed_s"])
