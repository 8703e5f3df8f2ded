"""Estimate memory and time of trials: tensors counted, a few batches trained.

Times may be those of another search. Builds the networks of a few draws, the first ones that a search would try as far
as they are known. Writes nothing, starts no Ray, and knows nothing of rungs: expected.py counts the images.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.errors import ConfigError
from ich_ray.model.architectures import architecture_of
from ich_ray.search.progress_table import format_parameters
from ich_ray.search.space.space import RandomSuggest

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.results import SearchResult
    from ich_ray.search.space.space import SearchSpace

__all__ = [
    "Memory",
    "Speed",
    "TrialMemory",
    "earlier_speed",
    "estimate_memory",
    "first_draws",
    "measured_speed",
    "seconds_per_image",
    "trial_memory",
]

_DRAWS = 24
_COUNT_S = 4.0
_MEASURE_S = 6.0
_MEASURE_EACH_S = 0.7
# A CPU shows as many images a second in steps of 8 as in larger ones, for all but the smallest networks.
_IMAGES_A_STEP_ON_CPU = 8
# Activations are counted for this many images: what a layer keeps once a batch is then nothing beside them.
_IMAGES_COUNTED = 64
# Measured: a state of 95 MiB takes 191 more while safetensors packs it.
_COPIES_TO_SAVE = 3


@dataclass(frozen=True)
class TrialMemory:
    """Bytes of one trial's tensors in float32, without the images and what PyTorch itself takes.

    Attributes:
        weights: and buffers, and their average where there is one.
        training: a gradient for each trained weight, and what the optimizer keeps of it.
        activations: what the forward pass of a batch keeps for the backward pass.
        resampled: what a batch takes at most while it is augmented and reduced; 0 where it is shown as prepared.
        validated: what a batch of validation slices takes at most, its reduction included; never beside the two above.
    """

    parameters: Hyperparameters
    weights: int
    training: int
    activations: int
    resampled: int = 0
    validated: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.training + max(self.activations + self.resampled, self.validated)

    @property
    def saving(self) -> int:
        """Bytes of the host while a state is saved: it, and two copies while it is packed."""
        kept = _optimizer_states(self.parameters)
        return _COPIES_TO_SAVE * (self.weights + self.training * kept // (1 + kept))


@dataclass(frozen=True)
class Memory:
    """Of some draws; `misfits` are those that the model refuses for these images, with the first reason."""

    trials: tuple[TrialMemory, ...]
    misfits: int = 0
    reason: str = ""

    @property
    def usual_and_most(self) -> tuple[TrialMemory, TrialMemory] | None:
        """The median draw and the largest one; None without any."""
        ordered = sorted(self.trials, key=lambda trial: trial.total)
        return (ordered[len(ordered) // 2], ordered[-1]) if ordered else None

    def __str__(self) -> str:
        refused = f"{self.misfits} of {self.misfits + len(self.trials)} draws do not fit the images: {self.reason}"
        if (found := self.usual_and_most) is None:
            return f"unknown; {refused}"
        usual, most = found
        named = format_parameters(most.parameters.model_dump(), ("architecture", "batch_size", "optimizer"))
        parts = f"weights {_mib(most.weights)}, gradients and optimizer {_mib(most.training)}"
        if most.validated > most.activations + most.resampled:
            parts = f"{parts}, a batch of validation {_mib(most.validated)}"
        else:
            parts += f", augmented images {_mib(most.resampled)}" * (most.resampled > 0)
            parts = f"{parts}, activations {_mib(most.activations)}"
        count = "1 draw" if len(self.trials) == 1 else f"{len(self.trials)} draws"
        said = (
            f"{_mib(usual.total)} MiB a trial usually, {_mib(most.total)} at most ({named}: {parts}); counted in "
            f"float32 for {count}, without PyTorch's own; up to {_mib(most.saving)} MiB more of the host while a state "
            "is saved"
        )
        return f"{said}; {refused}" if self.misfits else said


@dataclass(frozen=True)
class Speed:
    """Seconds of a trial per training image, with its share of validation.

    None where unknown. Says how it is known.
    """

    seconds_per_image: float | None
    source: str

    def hours(self, images: int, concurrent: int) -> float | None:
        """How long `images` take, `concurrent` trials at a time."""
        return None if self.seconds_per_image is None else images * self.seconds_per_image / concurrent / 3600

    def describe(self, images: int, concurrent: int) -> str:
        hours = self.hours(images, concurrent)
        if hours is None or self.seconds_per_image is None:
            return f"unknown: {self.source}"
        return f"about {_duration(hours * 3600)} at {1 / self.seconds_per_image:,.0f} images/s a trial ({self.source})"


def _duration(seconds: float) -> str:
    """Two digits, in the unit that has some before the point."""
    unit, name = (3600, "hours") if seconds >= 3600 else (60, "minutes") if seconds >= 60 else (1, "seconds")
    return f"{seconds / unit:.2g} {name}" if seconds / unit < 100 else f"{seconds / unit:,.0f} {name}"


def first_draws(space: SearchSpace, count: int, seed: int = 0) -> list[Hyperparameters]:
    """The first draws: what is listed, or else the points and then random ones.

    Weights that would have to be fetched are left out.
    """
    points = ((*space.points, *({} for _ in range(count))) if space.listed is None else space.listed)[:count]
    drawn = (space.draw(RandomSuggest(seed + index, point)).hyperparameters for index, point in enumerate(points))
    return [parameters.model_copy(update={"weights": "none"}) for parameters in drawn]


def estimate_memory(space: SearchSpace, image_shape: tuple[int, int, int], draws: int = _DRAWS) -> Memory:
    """Memory of the first draws, of as many as can be counted in some seconds."""
    counted: list[TrialMemory] = []
    misfits, reason = 0, ""
    end = time.monotonic() + _COUNT_S
    for parameters in first_draws(space, draws):
        if counted and time.monotonic() > end:
            break
        try:
            counted.append(trial_memory(parameters, image_shape))
        except ConfigError as error:
            misfits, reason = misfits + 1, reason or str(error)
    return Memory(tuple(counted), misfits, reason)


def trial_memory(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> TrialMemory:
    """Count the tensors of one training step, without making them (on PyTorch's meta device).

    Raises:
        ConfigError: the parameters do not fit the images.
    """
    weights, trained, activations, validated = _count(parameters.network_alone, image_shape)
    states = _optimizer_states(parameters)
    kept = activations * parameters.batch_size // _IMAGES_COUNTED
    copies = 2 if parameters.ema else 1
    resampled = _resampled(parameters, image_shape) * parameters.batch_size
    return TrialMemory(parameters, copies * weights, trained * (1 + states), kept, resampled, validated)


def _optimizer_states(parameters: Hyperparameters) -> int:
    """Tensors that the optimizer keeps of each trained weight."""
    return 2 if parameters.optimizer != "sgd" else int(parameters.momentum > 0)


def _resampled(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> int:
    """Bytes of an image while `model.resampling` works: before, averaged and after in float32, and its coordinates."""
    from ich_ray.model.input_shape import input_shape
    from ich_ray.model.resampling import points_a_pixel

    channels, *sides = input_shape(parameters, image_shape)
    if parameters.shows_part:  # read at so many points a pixel, which are then averaged
        points = points_a_pixel(image_shape[1], sides[0]) ** 2
        read = 4 * (channels * math.prod(image_shape[1:]) + points * (channels + 2) * math.prod(sides))
        return read + 4 * channels * math.prod(sides) * (points > 1)
    if not parameters.is_augmented and sides == [*image_shape[1:]]:
        return 0
    return 4 * (channels * math.prod(image_shape[1:]) + 2 * (channels + 1) * math.prod(sides))


@lru_cache(maxsize=4096)  # of a thousand draws that are refused, too
def _count(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bytes of all weights and buffers, of the trained weights, and of two batches.

    Of `_IMAGES_COUNTED` training images those that are kept for the backward pass, of a batch of validation slices, as
    they were prepared, those at the peak.
    """
    import torch

    from ich_ray.model.input_shape import input_shape
    from ich_ray.model.networks import build_network
    from ich_ray.search.plan.live_tensors import peak_bytes
    from ich_ray.training.inference import EVALUATION_BATCH

    shape = input_shape(parameters, image_shape)
    architecture_of(parameters).check(parameters, shape)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device("meta"):
        network = build_network(parameters, image_shape)
        images = torch.empty((_IMAGES_COUNTED, *shape), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images)
    own = [*network.parameters(), *network.buffers()]
    for tensor in own:
        kept.pop(tensor.untyped_storage()._cdata, None)
    del logits  # it held what was kept, so that no two storages had one address
    trained = sum(_bytes(weight) for weight in network.parameters() if weight.requires_grad)
    with torch.device("meta"):
        prepared = torch.empty((EVALUATION_BATCH, shape[0], *image_shape[1:]), dtype=torch.uint8)
    validated = _bytes(prepared) + peak_bytes(lambda: network.eval()(prepared))
    return sum(map(_bytes, own)), trained, sum(kept.values()), validated


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def earlier_speed(searches: Iterable[SearchResult]) -> Speed | None:
    """The mean over all images of the first search that reported any; None without one."""
    for found in searches:
        last = [trial.reports[-1] for trial in found.trials if trial.reports]
        images, seconds = sum(report.images_seen for report in last), sum(report.elapsed_s for report in last)
        if images and seconds:
            return Speed(seconds / images, f"as {len(last)} trials of {found.files.root} trained")
    return None


def measured_speed(space: SearchSpace, dataset: PreparedDataset, cpus: float, gpus: float) -> Speed:
    """Train the first draws for a few batches each, for some seconds in all, on this machine."""
    import torch

    if gpus and not torch.cuda.is_available():
        return Speed(None, "trials train on GPUs and this machine has none; plan on one that has")
    device = torch.device("cuda" if gpus else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    measured: dict[tuple[object, ...], float] = {}
    draws = first_draws(space, _DRAWS)
    end = time.monotonic() + _MEASURE_S
    try:
        for parameters in draws:
            if (time.monotonic() < end or not measured) and (key := _size(parameters)) not in measured:
                try:
                    measured[key] = seconds_per_image(parameters, dataset, space.budget.report_every, device)
                except ConfigError:
                    continue
    finally:
        torch.set_num_threads(threads)
    seconds = [measured[key] for key in map(_size, draws) if key in measured]
    if not seconds:
        return Speed(None, "no draw fits the images")
    slow, fast = (f"{1 / pace:,.0f}" for pace in (max(seconds), min(seconds)))
    several = f"{len(measured)} networks measured here for a moment: {slow} to {fast}"
    single = next(parameters.architecture for parameters in draws if _size(parameters) in measured)
    source = several if len(measured) > 1 else f"a single {single} measured here for a moment"
    return Speed(sum(seconds) / len(seconds), source)


def _size(parameters: Hyperparameters) -> tuple[object, ...]:
    """What the speed of a network depends on."""
    return (*parameters.of_speed, parameters.optimizer)


def seconds_per_image(
    parameters: Hyperparameters, dataset: PreparedDataset, report_every: int, device: torch.device
) -> float:
    """Of training on a device for a moment, with the share of validation.

    Raises:
        ConfigError: the network does not fit the images.
    """
    from ich_ray.training.loop import TrainingBudget, train

    large_on_cpu = device.type == "cpu" and not architecture_of(parameters).is_small
    step = min(parameters.batch_size, _IMAGES_A_STEP_ON_CPU) if large_on_cpu else parameters.batch_size
    validation = dataset.role("validation")
    few = _few(validation, step)
    # A rate at which nothing diverges: it takes as long as any other.
    trained = parameters.model_copy(
        update={"batch_size": step, "learning_rate": 1e-9, "training_slices": 0, "epochs": 0}
    )
    reports = train(
        trained,
        dataset.role("train"),
        few,
        budget=TrainingBudget(1000 * step, step),
        seed=0,
        device=device,
        placement="host",
    )
    first = next(reports)
    end = time.monotonic() + _MEASURE_EACH_S
    training_s, count = 0.0, 0
    for last in reports:
        training_s, count = training_s + step / last.images_per_s, count + 1
        if time.monotonic() >= end:
            break
    validation_s = (last.elapsed_s - first.elapsed_s - training_s) / count / len(few)
    return training_s / (count * step) + validation_s * len(validation) / report_every


def _few(slices: SliceSet, count: int) -> SliceSet:
    """About `count` slices with and without haemorrhage."""
    halves = [slices.rows[slices.labels == label][: max(count // 2, 1)] for label in (0, 1)]
    return type(slices)(slices.dataset, np.concatenate(halves))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"
