"""Problems with a known optimum: learning curves from a formula, with noise between trainings and between reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import yaml

from ich_ray.search.space.yaml_file import parse_space

if TYPE_CHECKING:
    from benchmarks.efficiency.course import Parameters

SOURCE = yaml.safe_load("""
name: efficiency
budget: {images: 27000, report_every: 1000, first_rung: 1000, reduction: 3, min_peers: 3}
parameters:
  architecture:  {choice: [plain_cnn, resnet18]}
  blocks:        {int: [1, 4], when: {architecture: plain_cnn}}
  batch_size:    {choice: [32, 64, 128]}
  learning_rate: {loguniform: [0.00001, 0.1]}
  decay:         {loguniform: [0.001, 0.1]}
  dropout:       {uniform: [0.0, 0.6]}
  optimizer:     {choice: [sgd, adam, adamw]}
""")
SPACE = parse_space(SOURCE, "efficiency.yaml")
# Seconds an image of networks whose speeds differ tenfold; which of them is the best is drawn for each problem.
PACES = {"plain_cnn": 1.0, "mobilenet_v3_small": 1.8, "resnet18": 3.2, "resnet50": 5.6, "densenet121": 10.0}
PACED = parse_space(
    {**SOURCE, "name": "paced", "parameters": {**SOURCE["parameters"], "architecture": {"choice": list(PACES)}}},
    "paced.yaml",
)
Kind = Literal["plain", "slow", "paced"]
IMAGES, EVERY = SPACE.budget.images, SPACE.budget.report_every
FLOOR, CEILING = 0.15, 0.9


class Landscape:
    """A problem of its own for each seed: where the optimum lies, and how far parameters depend on each other.

    Of three kinds. `plain`: early ranks are nearly the last ones. `slow`: the best ones learn nothing until well after
    the first rung, where the others look better. `paced`: networks differ tenfold in speed.

    Attributes:
        space: with its budget and rungs.
        best: the value of the optimum at the end of the budget, by a fine search over what is not decided by sight.
    """

    def __init__(self, seed: int, noise: float, kind: Kind = "plain") -> None:
        random = np.random.default_rng((seed, 7))
        self.space = PACED if kind == "paced" else SPACE
        self._noise = noise
        self._rate = {"sgd": random.uniform(-2.5, -1.5), "adam": random.uniform(-3.7, -2.3)}
        self._rate["adamw"] = self._rate["adam"] + random.uniform(-0.3, 0.3)
        # The best rate over batch size (linear scaling would be 1) and architecture, the best dropout over decay.
        self._scaling, self._smaller, self._coupled = random.uniform(0, [1, 0.5, 0.7])
        self._late = random.uniform(1.3, 2.5) * self.space.budget.first_rung if kind == "slow" else 0.0
        missing = [0.0, *random.uniform(0.05, 0.6, len(PACES) - 1)]
        self._network = dict(zip(PACES, random.permutation(missing), strict=True)) if kind == "paced" else {}
        best_network = min(self._network, key=self._network.__getitem__) if self._network else "resnet18"
        rates, dropouts = np.linspace(-0.5, 0.5, 41), np.linspace(0.0, 0.6, 61)
        fixed = {"architecture": best_network, "blocks": 3, "batch_size": 64, "optimizer": "adam", "decay": 0.01}
        middle = self._rate["adam"] + self._smaller * (best_network == "plain_cnn")
        self.best = max(
            self.value({**fixed, "learning_rate": 10 ** (middle + rate), "dropout": dropout}, IMAGES)
            for rate in rates
            for dropout in dropouts
        )

    def begin(self, parameters: Parameters, seed: tuple[int, ...]) -> ComputedTraining:
        return ComputedTraining(self, parameters, self._noise, seed)

    def value(self, parameters: Parameters, images: float) -> float:
        """Average precision without noise: an exponential approach to a ceiling, slower at small rates, much dropout.

        Small rates and dropout end higher than they begin, so that early ranks are not the last ones.
        """
        small = parameters["architecture"] == "plain_cnn"
        off = math.log10(parameters["learning_rate"]) - self._rate[parameters["optimizer"]] - self._smaller * small
        off -= self._scaling * math.log10(parameters["batch_size"] / 64)
        dropped, decayed = (parameters["dropout"] - 0.35) / 0.3, math.log10(parameters["decay"]) + 2
        miss = (off / 0.9) ** 2 + 0.8 * dropped**2 + 0.3 * decayed**2 + self._coupled * dropped * decayed
        miss += 0.2 * (parameters["blocks"] - 3) ** 2 if small else 0.0
        miss += self._network.get(parameters["architecture"], 0.3 * small)
        miss += 0.15 * (parameters["batch_size"] == 128) + 0.1 * (parameters["optimizer"] == "adamw")
        slow = 0.1 + 0.12 * max(0.0, -off) + 0.15 * parameters["dropout"]
        if self._late:  # whoever has a high rate begins to learn at once
            begun = 1 / (1 + math.exp(-(images - self._late) / 100))
            at_once = 1 / (1 + math.exp(-(off - 0.4) / 0.05))
            images *= at_once + (1 - at_once) * begun
        return FLOOR + (CEILING - FLOOR) * math.exp(-0.5 * miss) * (1 - math.exp(-images / (slow * IMAGES)))

    def pace(self, parameters: Parameters) -> float:
        """Seconds an image."""
        return PACES[parameters["architecture"]] if self._network else 1.0

    def regret(self, parameters: Parameters) -> float:
        return self.best - self.value(parameters, IMAGES)


class ComputedTraining:
    """As noisy as asked: half of the variance stays with the seed, half with each report."""

    def __init__(self, on: Landscape, parameters: Parameters, noise: float, seed: tuple[int, ...]) -> None:
        self.parameters, self.images, self._on = parameters, 0, on
        self._random, self._noise = np.random.default_rng(seed), noise / math.sqrt(2)
        self._offset = self._random.normal(0, self._noise) if noise else 0.0
        self.values: list[float] = []

    def report(self) -> float:
        self.images += EVERY
        noise = self._random.normal(0, self._noise) if self._noise else 0.0
        self.values.append(min(max(self.value + self._offset + noise, 0.0), 1.0))
        return self.values[-1]

    @property
    def value(self) -> float:
        """Without noise, now."""
        return self._on.value(self.parameters, self.images)
