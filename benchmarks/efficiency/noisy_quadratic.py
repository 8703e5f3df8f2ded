"""A computed training whose schedule matters: stochastic gradient descent on a noisy quadratic.

Every direction has its curvature, and gradients are as noisy as curved; so a high rate is fast and then hovers above
the minimum, until it falls or weights are averaged (Zhang et al., "Which algorithmic choices matter at which batch
sizes?", NeurIPS 2019, section 3). A trial also has a floor of its own, as a network has, which it cannot train away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.model.schedule import ScheduleStep, rate_of
from ich_ray.training.averaging import kept_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["IMAGES", "SLICES", "losses"]

IMAGES, SLICES = 108_000, 12_000
_CURVATURE = 1 / np.arange(1, 65)
_NOISE = 0.3  # of the gradient of 64 images, where the curvature is 1
_FLOORS = 0.3


def losses(
    drawn: Hyperparameters, seed: int, at: Sequence[int], budget: int = IMAGES
) -> tuple[list[float], list[float]]:
    """The loss after so many images each, of the weights and of their average; multiples of the batch size."""
    random = np.random.default_rng(seed)
    floor, place = random.uniform(0, _FLOORS), random.normal(size=len(_CURVATURE))
    deviation = np.sqrt(_NOISE * 64 / drawn.batch_size * _CURVATURE)
    average, own, averaged = place.copy(), [], []
    for seen in range(0, budget, drawn.batch_size):
        rate = rate_of(drawn, ScheduleStep(seen, budget, SLICES))
        place = place - rate * (_CURVATURE * place + deviation * random.normal(size=len(place)))
        share = kept_share(drawn.ema, seen, drawn.batch_size)
        average = share * average + (1 - share) * place
        if len(own) < len(at) and seen + drawn.batch_size >= at[len(own)]:
            own.append(floor + float(_CURVATURE @ place**2) / 2)
            averaged.append(floor + float(_CURVATURE @ average**2) / 2)
    return own, averaged
