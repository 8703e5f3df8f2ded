"""Estimate the cost of the published systems at full size, from rates measured here.

Trains nothing but a few batches of noise on this machine, in networks of full size. A figure of this file is planned
and not measured, and says so wherever it is shown.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.progress import say
from ich_ray.published.probe import MINIBATCHES, PROBED
from ich_ray.published.scale import FULL, ours, report_a, report_b, retrained_slices
from ich_ray.published.sequential_cnn import SequentialFields
from ich_ray.search.plan.cost_model import first_draws
from ich_ray.search.plan.expected import expected_course, images_at_most
from ich_ray.search.space.space import sampled
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.storage import Count, Line, Record

if TYPE_CHECKING:
    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["PlannedStage", "planned_stages", "rate"]

# Of 752,803 slices; roles take 60 % of the patients for training. Only report A's probe and ours depend on it.
_TRAIN = 450_000
_FOLDS = 5
# On a CPU a step of 2 images shows as many a second as larger ones do, and takes less memory.
_IMAGES_A_STEP = {"cpu": 2, "cuda": 16}
_WARM_STEPS, _STEPS = 1, 3


class PlannedStage(Record):
    """One stage at full size.

    Attributes:
        images: that training would be shown.
        images_per_s: of the network that stands for the stage, measured here on noise; 0 where it had no room.
        rated: which network that is.
    """

    stage: Line
    images: Count
    images_per_s: float
    rated: Line
    device: Line

    @property
    def hours(self) -> float:
        return self.images / self.images_per_s / 3600 if self.images_per_s else math.inf


@dataclass(frozen=True)
class _Stage:
    name: str
    images: int
    network: Hyperparameters
    shape: tuple[int, int, int]


def planned_stages() -> list[PlannedStage]:
    """Every stage of both reports and of ours at full size."""
    rates: dict[tuple[str, tuple[int, int, int]], tuple[float, str]] = {}
    planned = []
    for stage in _stages():
        key = (stage.network.model_dump_json(), stage.shape)
        if key not in rates:
            say(f"  rate of {_called(stage.network)} at {stage.shape[1]} px")
            rates[key] = rate(stage.network, stage.shape)
        images_per_s, device = rates[key]
        planned.append(
            PlannedStage(
                stage=stage.name,
                images=stage.images,
                images_per_s=images_per_s,
                rated=f"{_called(stage.network)} at {'x'.join(map(str, (*stage.shape[1:], stage.shape[0])))}",
                device=device,
            )
        )
    return planned


def _called(network: Hyperparameters) -> str:
    stacked = network.architecture == "stacked_cnn"
    blocks = f" {SequentialFields.of(network).convolutions}" if stacked else ""
    frozen = f" from {network.unfreeze_from}" if network.unfreeze_from != "all" else ""
    return f"{network.architecture}{blocks}{frozen}"


def _stages() -> list[_Stage]:
    a = parse_space(report_a(FULL, "none", _TRAIN), "report_a")
    b = parse_space(report_b(FULL, _TRAIN), "report_b")
    own = parse_space(ours(FULL), FULL.ours)
    grid = sampled(a)
    stacked, residual = (
        next(trial for trial in grid if trial.architecture == name) for name in ("stacked_cnn", "resnet50")
    )
    winners = len({trial.model_dump_json(exclude={*PROBED}) for trial in grid})
    last = sampled(b)[-1]
    windows, raw = (3, FULL.size_a, FULL.size_a), (1, FULL.size_b, FULL.size_b)
    finer = (3, FULL.size_ours, FULL.size_ours)
    probed = sum(MINIBATCHES * FULL.passes * trial.batch_size for trial in grid) // 2
    searched = expected_course(a.budget, winners).images // 2
    folds = _FOLDS * last.epochs * last.training_slices
    again = FULL.epochs * retrained_slices(FULL, _TRAIN)
    own_images = expected_course(own.budget, FULL.trials).images
    return [
        _Stage(f"report A, probe of the CNN: {len(grid) // 2} combinations", probed, stacked, windows),
        _Stage(f"report A, probe of ResNet50: {len(grid) // 2} combinations", probed, residual, windows),
        _Stage("report A, search among the winners, CNN", searched, stacked, windows),
        _Stage("report A, search among the winners, ResNet50", searched, residual, windows),
        _Stage("report B, ten candidates", images_at_most(b, len(b.listed or ())), last, raw),
        _Stage("report B, five folds of m10", folds, last, raw),
        _Stage(f"report B, m10 again, {FULL.epochs} epochs if patience does not end it", again, last, raw),
        _Stage(f"ours, {FULL.trials} trials", own_images, first_draws(own, 1)[0], finer),
    ]


def rate(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> tuple[float, str]:
    """Images a second of forward and backward passes on noise, and the device's name.

    On CPUs by the processor time that they take, so that what else a machine does is not counted.
    """
    import torch

    from ich_ray.model.input_shape import input_shape
    from ich_ray.model.networks import build_network
    from ich_ray.training.precision import autocast, precision_on

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_network(parameters.model_copy(update={"weights": "none"}), image_shape).to(device)
    shape = (_IMAGES_A_STEP[device.type], *input_shape(parameters, image_shape))
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    precision, threads = precision_on(device), torch.get_num_threads()

    def steps(count: int) -> float:
        """The clock after so many: of the device, or of the processor."""
        for _ in range(count):
            with autocast(precision, device):
                logits = network(images)
            logits.sum().backward()
        if device.type == "cpu":
            return time.process_time() / threads
        torch.cuda.synchronize(device)
        return time.perf_counter()

    started = steps(_WARM_STEPS)
    rate = _STEPS * len(images) / (steps(_STEPS) - started)
    cores = f"{threads} CPU core" + ("s" if threads > 1 else "")
    return rate, cores if device.type == "cpu" else torch.cuda.get_device_name(device)
