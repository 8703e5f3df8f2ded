"""The training loop: a generator that yields one `Progress` per report. It knows nothing of Ray, searches or files.

Budget. Reports land exactly on multiples of `report_every` (and on the end of the budget), whatever the batch size,
because rungs compare trials at equal images. The batch that would cross a report is cut there; when fewer than eight
images would be left for a batch of their own they join the one before (batch normalization needs company, and a
gradient of three images at the full rate is noise).

Order. Position `p` of the stream of images is entry `p mod n` of the permutation of epoch `p // n`, which depends only
on (seed, epoch); batches run over into the next epoch. Dropout is reseeded from (seed, images_seen, rank) at each
report. So `images_seen` alone says where training stands, and a resumed run repeats the undisturbed one bit for bit on
a CPU.

Workers. With a `Shard` each of several processes takes every k-th image of the global batch and gradients are summed,
so `batch_size` means the same for any number of them. Batch statistics are taken over all workers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_ray.data.features import FeatureImages, FeaturesInMemory
from ich_ray.data.placement import PlacedImages, Placement, as_index, place
from ich_ray.data.sampling import stratified
from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.metrics import Ranking, best_f_beta, confusion, log_loss
from ich_ray.model.logits import EVALUATION_BATCH, batch_logits, in_batches
from ich_ray.model.networks import Network, build_network
from ich_ray.model.pace import Pace, pace_for, usual_pace
from ich_ray.model.parallel import ALONE, Shard
from ich_ray.model.state import TrainingState
from ich_ray.model.trunk import Tail, shared
from ich_ray.model.weighting import class_weights, prior_shift
from ich_ray.results import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["Budget", "Progress", "TrainingState", "train"]

_SMALLEST_TAIL = 8
_STEPS_BETWEEN_CHECKS = 50  # reading the loss waits for an accelerator


@dataclass(frozen=True)
class Budget:
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
class Progress:
    """One report.

    Attributes:
        images_seen: training images shown so far.
        metrics: on the validation slices: average_precision, roc_auc, f2 and f2_threshold (the best threshold on these
            very slices), log_loss; and train_loss, the mean weighted loss since the report before. Log loss and
            threshold are of probabilities corrected for the class weights (`prior_shift`), so that they compare with
            `metrics.floors`. sensitivity_at_half and specificity_at_half are not corrected: they are of the decisions
            that the network makes itself where its output exceeds one half, as report B judged its candidates. NaN
            where undefined. Without validation slices train_loss alone.
        elapsed_s: time in training and validation so far, over all attempts.
        images_per_s: training images per second since the report before, without validation.
        setup: how it is computed; of the first worker if there are several.
    """

    images_seen: int
    metrics: dict[str, float]
    elapsed_s: float
    images_per_s: float
    setup: Setup
    _capture: Callable[[], TrainingState] = field(repr=False, compare=False)

    def state(self) -> TrainingState:
        """A copy of the state at this report, on the CPU. Take it before asking for the next report."""
        return self._capture()


def train(
    parameters: Hyperparameters,
    train: SliceSet,
    validation: SliceSet | None,
    *,
    budget: Budget,
    seed: int,
    device: torch.device | str = "cpu",
    resume: TrainingState | None = None,
    shard: Shard = ALONE,
    placement: Placement = "auto",
    trials: int = 1,
    features: FeaturesInMemory | None = None,
) -> Iterator[Progress]:
    """Train one network, yielding a `Progress` at each report; the last one is at `budget.images`.

    In the fastest mode that `pace` finds for an accelerator, on a CPU in float32. Seeds PyTorch's global generator.

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
            layers are used, or else the layers themselves.

    Raises:
        TrialFailure: `diverged` when the loss or a logit is not finite, `out_of_memory`.
        ConfigError: the parameters do not fit the images, or the state belongs to another plan.
    """
    if parameters.training_slices:
        train = stratified(train, parameters.training_slices, seed)
    run = _Run(parameters, train, validation, seed=seed, device=torch.device(device), shard=shard)
    try:
        run.start(resume, budget, placement, trials, features)
        while run.images_seen < budget.images:
            run.until(min(budget.images, (run.images_seen // budget.report_every + 1) * budget.report_every))
            yield run.report()
    except RuntimeError as error:
        if not _is_full(error):
            raise
        detail = str(error).rpartition("DefaultCPUAllocator: ")[2].split(". ")[0]
    else:
        return
    del run  # outside of the handler nothing else holds it, and others on the device need its memory
    raise TrialFailure("out_of_memory", detail)


def _is_full(error: RuntimeError) -> bool:
    """Whether memory ran out; allocators of CPUs, and libraries of accelerators that find no room, say so in words."""
    said = ("DefaultCPUAllocator: can't allocate memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


class _Run:
    """A network in training: what stays the same, and where it stands."""

    def __init__(
        self,
        parameters: Hyperparameters,
        slices: SliceSet,
        validation: SliceSet | None,
        *,
        seed: int,
        device: torch.device,
        shard: Shard,
    ) -> None:
        positives = int(slices.labels.sum())
        self._counts = (positives, len(slices) - positives)
        self.parameters, self.slices, self.validation, self.seed = parameters, slices, validation, seed
        self.device, self.shard = device, shard
        fingerprint = slices.dataset.manifest.fingerprint
        self.plan = {"parameters": parameters.identity(), "seed": seed, "slices": len(slices), "data": fingerprint}
        self.images_seen, self.elapsed_s = 0, 0.0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def start(
        self,
        resume: TrainingState | None,
        budget: Budget,
        placement: Placement,
        trials: int,
        features: FeaturesInMemory | None = None,
    ) -> None:
        w0, w1 = class_weights(self.parameters.loss, *self._counts)
        labels = torch.from_numpy(self.slices.labels)
        self.labels = labels.to(self.device)
        self.weights = (w0 + (w1 - w0) * labels).to(self.device)
        torch.manual_seed(self.seed)
        network = build_network(self.parameters, self.slices.dataset.image_shape)
        self.network: Network = self.shard.synchronized(network.to(self.device))
        self.trainable = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.stepped, self.images, self.validation_images = self._placed(placement, trials, features)
        self.pace = self._pace(budget.images - (resume.images_seen if resume else 0))
        self.optimizer = _optimizer(self.parameters, self.trainable, self.device)
        if resume is not None:
            self._restore(resume)

    def _placed(
        self, placement: Placement, trials: int, given: FeaturesInMemory | None
    ) -> tuple[nn.Module, PlacedImages, PlacedImages | None]:
        """What a step goes through, and its inputs: the network and images, or what is trained of it and features."""
        parts = [part for part in (self.slices, self.validation) if part is not None]
        dataset, rows = self.slices.dataset, np.concatenate([part.rows for part in parts])
        features = given or shared(self.network, self.parameters, dataset)
        if features is not None and features.covers(rows):
            inputs = [FeatureImages(features, part, self.device) for part in parts]
            return Tail(self.network, self.parameters), inputs[0], inputs[1] if self.validation is not None else None
        images = place(self.slices, self.device, placement, trials=trials)
        if self.validation is None:
            return self.network, images, None
        taken = self.slices.image_bytes if images.where == "device" else 0
        return self.network, images, place(self.validation, self.device, placement, taken_bytes=taken, trials=trials)

    def _pace(self, images: int) -> Pace:
        """Before there is an optimizer: its state follows the memory layout of the weights."""
        if self.device.type != "cuda":
            return usual_pace(self.stepped)
        batch = self.images.take(self.shard.part(self._stream(0, self.parameters.batch_size)))
        what = (str(self.device), batch.shape, *self.parameters.of_speed)
        return pace_for(self.stepped, batch, what, images_left=images // self.shard.count, shard=self.shard)

    @property
    def setup(self) -> Setup:
        cuda = self.device.type == "cuda"
        return Setup(
            device=torch.cuda.get_device_name(self.device) if cuda else str(self.device.type),
            workers=self.shard.count,
            images=self.images.where,
            mode=str(self.pace.mode),
            rates=self.pace.rates,
        )

    def until(self, end: int) -> None:
        """Train to exactly `end` images."""
        started = time.perf_counter()
        torch.manual_seed(_mix(self.seed, self.images_seen, self.shard.rank))
        first, steps, total = self.images_seen, 0, torch.zeros((), dtype=torch.float64, device=self.device)
        while self.images_seen < end:
            total += self._step(end)
            steps += 1
            if steps % _STEPS_BETWEEN_CHECKS == 0:
                self._check(total)
        self._interval_s = time.perf_counter() - started
        self.train_loss = self._check(total) / (end - first)
        self.images_per_s = (end - first) / self._interval_s

    def _check(self, total: torch.Tensor) -> float:
        value = float(self.shard.total(total.clone()))
        if not math.isfinite(value):
            raise TrialFailure("diverged", f"the training loss is {value} after {self.images_seen} images")
        return value

    def _step(self, end: int) -> torch.Tensor:
        """One optimizer step; the sum of this worker's losses."""
        take = min(self.parameters.batch_size, end - self.images_seen)
        if end - self.images_seen - take < min(_SMALLEST_TAIL, self.parameters.batch_size):
            take = end - self.images_seen
        positions = self.shard.part(self._stream(self.images_seen, take))
        epoch = self.images_seen / len(self.slices)
        for group in self.optimizer.param_groups:
            group["lr"] = self.parameters.learning_rate / (1 + self.parameters.decay * epoch)
        index = as_index(positions, self.device)
        self.optimizer.zero_grad()
        logits = self.pace.logits(self.images.take(positions))
        loss = binary_cross_entropy_with_logits(logits, self.labels[index], self.weights[index], reduction="sum")
        (loss / take).backward()  # type: ignore[no-untyped-call]
        self.shard.sum_gradients(self.trainable)
        self.optimizer.step()
        self.images_seen += take
        return loss.detach()

    def _stream(self, start: int, count: int) -> NDArray[np.int64]:
        """Positions in the training slices of the images `start` to `start + count` of the stream."""
        parts, n = [], len(self.slices)
        while count:
            epoch, offset = divmod(start, n)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(n)
            part = self._order[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def report(self) -> Progress:
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        if self.validation is not None and self.validation_images is not None:
            metrics = self._validated(self.validation, self.validation_images)
        metrics["train_loss"] = self.train_loss
        self.elapsed_s += self._interval_s + time.perf_counter() - started
        return Progress(self.images_seen, metrics, self.elapsed_s, self.images_per_s, self.setup, self._capture)

    def _validated(self, validation: SliceSet, images: PlacedImages) -> dict[str, float]:
        positions = self.shard.part(np.arange(len(validation)))
        batches = in_batches(images, positions, EVALUATION_BATCH)
        own = batch_logits(self.stepped, batches, self.pace.mode.precision(self.device))
        logits = self.shard.gathered(own, len(validation), self.device)
        if not np.isfinite(logits).all():
            raise TrialFailure("diverged", f"a validation logit is not finite after {self.images_seen} images")
        labels = validation.labels
        shift = prior_shift(self.parameters.loss, *self._counts)
        probabilities = torch.from_numpy(logits.astype(np.float64) + shift).sigmoid().numpy()
        ap, auc = Ranking(labels, logits).statistics()
        threshold, f2 = best_f_beta(labels, probabilities)
        decided = confusion(labels, logits, 0.0)
        return {
            "average_precision": ap,
            "roc_auc": auc,
            "f2": f2,
            "f2_threshold": threshold,
            "log_loss": log_loss(labels, probabilities),
            "sensitivity_at_half": decided.sensitivity,
            "specificity_at_half": decided.specificity,
        }

    def _capture(self) -> TrainingState:
        tensors = {f"weights.{name}": value for name, value in self.network.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items() if value is not None}
        copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        return TrainingState(copies, {"images_seen": self.images_seen, "elapsed_s": self.elapsed_s, "plan": self.plan})

    def _restore(self, state: TrainingState) -> None:
        if not self._is_planned(state.numbers.get("plan")):
            raise ConfigError(
                f"resume: the state must belong to the same parameters, seed and training slices, got "
                f"{state.numbers.get('plan')} instead of {self.plan}; start without it"
            )
        self.network.load_state_dict(state.part("weights"))
        per_weight: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.part("optimizer").items():
            index, _, key = name.partition(".")
            per_weight.setdefault(int(index), {})[key] = _laid_out_as(self.trainable[int(index)], value)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": per_weight})
        self.images_seen, self.elapsed_s = state.images_seen, float(state.numbers["elapsed_s"])

    def _is_planned(self, plan: object) -> bool:
        """Whether a state's plan is this one, however it tells the parameters."""
        if not isinstance(plan, dict) or {**plan, "parameters": self.plan["parameters"]} != self.plan:
            return False
        return self.parameters.is_same(plan.get("parameters"))


def _laid_out_as(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy in the memory layout of the weight that it is for: fused optimizers go through both in memory order."""
    if value.shape != weight.shape:
        return value.clone()
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def _optimizer(parameters: Hyperparameters, weights: list[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    rate, decay, fused = parameters.learning_rate, parameters.weight_decay, device.type == "cuda"
    if parameters.optimizer == "sgd":
        nesterov = parameters.momentum > 0
        return torch.optim.SGD(weights, rate, parameters.momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
    kind = torch.optim.Adam if parameters.optimizer == "adam" else torch.optim.AdamW
    return kind(weights, rate, weight_decay=decay, fused=fused)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
