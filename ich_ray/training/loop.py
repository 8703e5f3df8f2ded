"""The training loop: a generator that yields one `Progress` per report.

It knows nothing of Ray, searches or files.

Budget. Reports land exactly on multiples of `report_every` (and on the end of the budget), whatever the batch size,
because rungs compare trials at equal images. The batch that would cross a report is cut there; when fewer than eight
images would be left for a batch of their own they join the one before (batch normalization needs company, and a
gradient of three images at the full rate is noise).

Order. Position `p` of the stream of images is entry `p mod n` of the permutation of epoch `p // n`, which depends only
on (seed, epoch); batches run over into the next epoch. What is drawn for an augmented image depends only on (seed, p).
Dropout is reseeded from (seed, images_seen, rank) at each report. So `images_seen` alone says where training stands,
and a resumed run repeats the undisturbed one bit for bit on a CPU.

Parts. Schedule, optimizer and average follow from the draw, loss and augmentation are handed in (`Parts`); here is
nothing but their order.

Workers. With a `Shard` each of several processes takes every k-th image of the global batch and gradients are of all,
so `batch_size` means the same for any number of them. Batch statistics are taken over all workers.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from ich_ray.data.feature_store import FeatureBatches, FeaturesInMemory
from ich_ray.data.image_store import as_index
from ich_ray.data.read_ahead import IMAGES_AHEAD
from ich_ray.data.sampling import stratified
from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.model.networks import Network, build_network
from ich_ray.model.schedule import ScheduleStep, needs_budget, rate_of
from ich_ray.training.augmentation import augmentation_of
from ich_ray.training.averaging import WeightAverage
from ich_ray.training.data_parallel import ALONE, Shard
from ich_ray.training.frozen_features import TrainableHead, shared
from ich_ray.training.inference import EVALUATION_BATCH, batch_logits, in_batches
from ich_ray.training.network_inputs import NetworkInputs, place_inputs
from ich_ray.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from ich_ray.training.parts import Parts, Progress, TrainingBudget, execution_of, reports
from ich_ray.training.precision import autocast, precision_on
from ich_ray.training.state import TrainingState
from ich_ray.training.stream import Lookahead, Stream, mixed_seed, next_batch
from ich_ray.training.targets import known_targets
from ich_ray.training.usage_meter import UsageMeter
from ich_ray.training.validation import label_metrics, validation_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import nn

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.training.loss import Loss
    from ich_ray.vocabulary import Placement, Precision

__all__ = ["Parts", "Progress", "TrainingBudget", "TrainingState", "train"]

_STEPS_BETWEEN_CHECKS = 50  # reading the loss waits for an accelerator


def train(
    parameters: Hyperparameters,
    train: SliceSet,
    validation: SliceSet | None,
    *,
    budget: TrainingBudget,
    seed: int,
    device: torch.device | str = "cpu",
    resume: TrainingState | None = None,
    shard: Shard = ALONE,
    placement: Placement = "auto",
    trials: int = 1,
    features: FeaturesInMemory | None = None,
    precision: Precision | None = None,
    parts: Parts | None = None,
) -> Iterator[Progress]:
    """Train one network, yielding a `Progress` at each report; the last one is at `budget.images`.

    Seeds PyTorch's global generator.

    Args:
        parameters: the draw; where it names `training_slices`, so many are drawn from `train` with its own seed.
        train: slices to learn from.
        validation: slices to report on; None where all patients train, who leave none to measure with.
        budget: images to show and images between reports.
        seed: of weights, order and dropout; on one CPU the same seed gives the same numbers.
        device: where to train.
        resume: a state of the same plan; reports before it are not repeated.
        shard: this process's part when several train one network.
        placement: where the images lie, see `place`.
        trials: that share the device, each with an equal part of its memory.
        features: of the frozen layers, for all slices; if not given, those that lie beside the dataset for these very
            layers are used, or else the layers themselves. Never where images are augmented.
        precision: on an accelerator; that of `resume` if it holds one, else this, else by rule (`training.precision`).
        parts: loss and augmentation, if not the usual ones.

    Raises:
        TrialFailure: `diverged` when the loss or a logit is not finite, `out_of_memory`.
        ConfigError: the parameters do not fit the images, or the state belongs to another plan.
    """
    if parameters.training_slices:
        train = stratified(train, parameters.training_slices, seed)
    where = torch.device(device)
    yield from reports(
        _Run(parameters, train, validation, parts or Parts(), budget=budget, seed=seed, device=where, shard=shard),
        lambda run: run.start(resume, placement, trials, features, precision),
        budget,
    )


class _Run:
    """A network in training: what stays the same, and where it stands."""

    def __init__(
        self,
        parameters: Hyperparameters,
        slices: SliceSet,
        validation: SliceSet | None,
        parts: Parts,
        *,
        budget: TrainingBudget,
        seed: int,
        device: torch.device,
        shard: Shard,
    ) -> None:
        self.parameters, self.slices, self.validation, self.parts = parameters, slices, validation, parts
        self.budget, self.seed, self.device, self.shard = budget, seed, device, shard
        self.stream, self.lookahead = Stream(len(slices), seed), Lookahead(len(slices), seed, budget.images)
        fingerprint = slices.dataset.manifest.fingerprint
        self.plan = {"parameters": parameters.identity(), "seed": seed, "slices": len(slices), "data": fingerprint}
        # Absent where rates do not depend on it, so that states of version 0.1.0 go on.
        if needs_budget(parameters):
            self.plan["budget"] = budget.images
        self.augmentation = augmentation_of(parameters, slices.dataset.image_shape)
        self.images_seen, self.elapsed_s = 0, 0.0

    def start(
        self,
        resume: TrainingState | None,
        placement: Placement,
        trials: int,
        features: FeaturesInMemory | None = None,
        precision: Precision | None = None,
    ) -> None:
        targets = known_targets(self.parameters, self.slices)
        self.loss: Loss = self.parts.loss(self.parameters, torch.from_numpy(targets).to(self.device))
        torch.manual_seed(self.seed)
        network = build_network(self.parameters, self.slices.dataset.image_shape)
        self.network: Network = self.shard.synchronized(network.to(self.device))
        self.trainable = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.average = WeightAverage(self.network, self.parameters.ema) if self.parameters.ema else None
        self._place(placement, trials, features)
        self.optimizer = build_optimizer(self.parameters, self.trainable, self.device)
        self.precision = precision_on(self.device, (resume.precision if resume else None) or precision)
        self.meter = UsageMeter(self.device)
        if resume is not None:
            self._restore(resume)

    def _place(self, placement: Placement, trials: int, given: FeaturesInMemory | None) -> None:
        """Set what steps and validation go through, and its inputs: networks and images, or their tails and features.

        The tail of a network is what is trained of it.
        """
        parts = [part for part in (self.slices, self.validation) if part is not None]
        dataset, rows = self.slices.dataset, np.concatenate([part.rows for part in parts])
        self.validated: nn.Module = self.average.network if self.average else self.network
        self.validation_inputs: NetworkInputs | None = None
        augmented = self.parts.augmentation or self.augmentation
        features = None if augmented else given or shared(self.network, self.parameters, dataset)
        if features is not None and features.covers(rows):
            self.forward: nn.Module = self.shard.data_parallel(TrainableHead(self.network, self.parameters))
            self.validated = TrainableHead(self.validated, self.parameters)
            batches = FeatureBatches(features, self.device)  # of a slice, whatever its input was made of
            self.inputs = NetworkInputs(batches, self.slices.rows)
            if self.validation is not None:
                self.validation_inputs = NetworkInputs(batches, self.validation.rows)
            return
        self.forward = self.shard.data_parallel(self.network)
        self.inputs = place_inputs(self.parameters, self.slices, self.device, placement, trials=trials)
        if self.validation is not None:
            self.validation_inputs = place_inputs(
                self.parameters,
                self.validation,
                self.device,
                placement,
                taken_bytes=self.inputs.held_bytes,
                trials=trials,
            )

    def until(self, end: int) -> None:
        """Train to exactly `end` images."""
        self.meter.begin()
        torch.manual_seed(mixed_seed(self.seed, self.images_seen, self.shard.rank))
        first, steps, total = self.images_seen, 0, torch.zeros((), dtype=torch.float64, device=self.device)
        while self.images_seen < end:
            total += self._step(end)
            steps += 1
            if steps % _STEPS_BETWEEN_CHECKS == 0:
                self._check(total)
                self.meter.sample()
        self.train_loss = self._check(total) / (end - first)
        self.meter.end(end - first)

    def _check(self, total: torch.Tensor) -> float:
        value = float(self.shard.total(total.clone()))
        if not math.isfinite(value):
            raise TrialFailure("diverged", f"the training loss is {value} after {self.images_seen} images")
        return value

    def _step(self, end: int) -> torch.Tensor:
        """One optimizer step; the sum of this worker's losses."""
        take = next_batch(self.parameters.batch_size, end - self.images_seen)
        first = self.images_seen
        coming = self.lookahead.coming(first, first + take + IMAGES_AHEAD)
        self.inputs.will_take(self.shard.part(coming))  # the workers of a machine share its file cache
        slices = self.shard.part(self.stream.slices(first, take))
        rate = rate_of(self.parameters, ScheduleStep(first, self.budget.images, len(self.slices)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        index = as_index(slices, self.device)
        self.optimizer.zero_grad()
        with self.meter.waiting():
            images = self._shown(slices, self.shard.part(np.arange(first, first + take)))
        with autocast(self.precision, self.device):
            logits = self.forward(images)
        loss = self.loss(logits, index)
        self.shard.backward(loss * self.shard.scale(take))
        if self.parameters.clip:  # the gradient of the global batch, equal in every process
            clip_grad_norm_(self.trainable, self.parameters.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(first, take)
        self.images_seen += take
        return loss.detach()

    def _shown(self, slices: NDArray[np.int64], positions: NDArray[np.int64]) -> torch.Tensor:
        """Inputs of training slices, augmented as those at `positions` in the stream are."""
        if self.parts.augmentation is not None:
            return self.parts.augmentation(self.inputs.take(slices), as_index(positions, self.device), self.seed)
        if self.augmentation is None:
            return self.inputs.take(slices)
        images, rectangles = self.inputs.take_uncut(slices)
        return self.augmentation(images, as_index(positions, self.device), self.seed, rectangles)

    def report(self) -> Progress:
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        logits: NDArray[np.float32] | None = None
        if self.validation is not None and self.validation_inputs is not None:
            metrics, logits = self._validated(self.validation, self.validation_inputs)
        metrics["train_loss"] = self.train_loss
        validation_s = time.perf_counter() - started
        self.elapsed_s += self.meter.training_s + validation_s
        return Progress(
            self.images_seen,
            metrics,
            self.elapsed_s,
            self.meter.images_per_s,
            self.meter.usage(None if logits is None else validation_s),
            execution_of(self.device, self.inputs.where, self.precision, self.shard.world_size),
            logits,
            self._capture,
        )

    def _validated(self, validation: SliceSet, inputs: NetworkInputs) -> tuple[dict[str, float], NDArray[np.float32]]:
        """Metrics, and the logits behind them as those of probabilities."""
        positions = self.shard.part(np.arange(len(validation)))
        batches = in_batches(inputs, positions, EVALUATION_BATCH)
        own = batch_logits(self.validated, batches, autocast(self.precision, self.device))
        logits = self.shard.gathered(own, len(validation), self.device)
        if not np.isfinite(logits).all():
            raise TrialFailure("diverged", f"a validation logit is not finite after {self.images_seen} images")
        by_label = logits.reshape(len(logits), -1)
        *subtypes, of_any = by_label.T
        metrics = validation_metrics(validation.labels, of_any, self.loss.shifts[-1])
        if subtypes:
            targets = validation.targets(self.parameters.predicted_labels)
            metrics |= label_metrics(targets, logits, self.loss.shifts, self.parameters.predicted_labels)
        return metrics, (by_label + np.array(self.loss.shifts)).astype(np.float32)

    def _capture(self) -> TrainingState:
        tensors = {f"weights.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.network.state_dict().items()}
        copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        numbers = {"images_seen": self.images_seen, "elapsed_s": self.elapsed_s, "plan": self.plan}
        return TrainingState(copies, {**numbers, "precision": self.precision})

    def _restore(self, state: TrainingState) -> None:
        if not self._is_planned(state.numbers.get("plan")):
            raise ConfigError(
                f"resume: the state must belong to the same parameters, seed, training slices and, where rates depend "
                f"on it, budget, got {state.numbers.get('plan')} instead of {self.plan}; start without it"
            )
        average = state.part("average")
        if bool(average) != (self.average is not None):
            raise ConfigError(
                f"resume: the state must hold averaged weights where training averages, and else none, got "
                f"{len(average)} averaged tensors; start without it"
            )
        self.network.load_state_dict(state.part("weights"))
        if self.average is not None:
            self.average.network.load_state_dict(average)
        restore_optimizer(self.optimizer, state.part("optimizer"))
        self.images_seen, self.elapsed_s = state.images_seen, float(state.numbers["elapsed_s"])

    def _is_planned(self, plan: object) -> bool:
        """Whether a state's plan is this one, however it tells the parameters."""
        if not isinstance(plan, dict) or {**plan, "parameters": self.plan["parameters"]} != self.plan:
            return False
        return self.parameters.is_same(plan.get("parameters"))
