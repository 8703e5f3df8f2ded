"""Scale of the reproduction: as published, or small enough for minutes on two cores.

Turns the spaces of both reports into those of a scale; every change is a line of `Scale` or of this file, and the page
prints them. Runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ich_ray.search.space.builtin_spaces import builtin_space

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FULL", "SCALES", "SMALL", "Scale", "ours", "report_a", "report_b"]

# One level is 16 HU: 8 bits hold the 12 of a scanner no finer.
RAW_WINDOW = "raw=1024/4096"
# Report B's sample sizes, in twentieths of the training slices where there are fewer: their order and their rough
# ratio stay, and every fold of a cross-validation still has as many.
_TWENTIETHS = {10_000: 5, 30_000: 8, 90_000: 12}
_REPORT_TWENTIETHS = 10  # divides what each candidate is shown
_RETRAINED = 300_000
_RETRAINED_TWENTIETHS = 15


@dataclass(frozen=True)
class Scale:
    """Sizes of one run of both systems and of ours.

    Attributes:
        patients: that the phantom makes where no images are given, in images of `phantom_px`.
        size_a: rows and columns for report A.
        size_b: rows and columns for report B.
        size_ours: rows and columns for ours, no fewer than its space asks for.
        filters_b: of each of its blocks.
        passes: of the probe over its ten minibatches.
        epochs: of report B's retraining at most; its patience ends it sooner.
        ours: the search space that is ours, and how many trials.
    """

    name: Literal["small", "full"]
    patients: int
    phantom_px: int
    size_a: int
    size_b: int
    size_ours: int
    filters_b: int
    passes: int
    epochs: int
    weights: str
    ours: str
    trials: int


FULL = Scale("full", 400, 512, 128, 512, 384, 64, 10, 20, "imagenet", "default", 100)
SMALL = Scale("small", 100, 128, 64, 64, 64, 8, 3, 8, "none", "demo", 6)
SCALES: Mapping[str, Scale] = {scale.name: scale for scale in (SMALL, FULL)}


def _source(name: str) -> dict[str, Any]:
    source: dict[str, Any] = yaml.safe_load(builtin_space(name).read_text("utf-8"))
    return source


def report_a(scale: Scale, weights: str, train: int) -> dict[str, Any]:
    """Its grid; small: one batch size, dropout and decay, and three passes over the training slices."""
    source = _source("report_a")
    parameters = {**source["parameters"], "weights": {"fixed": weights, "when": {"architecture": "resnet50"}}}
    if scale.name == "small":
        each = max(100, train // 100 * 100)
        parameters |= {"batch_size": {"choice": [16]}, "dropout": {"choice": [0.5]}, "decay": {"choice": [0.1]}}
        parameters["filters"] = {"fixed": 16, "when": {"architecture": "stacked_cnn"}}
        source["budget"] = {"images": 3 * each, "report_every": each, "first_rung": 3 * each}
    return {**source, "parameters": parameters}


def report_b(scale: Scale, train: int) -> dict[str, Any]:
    """Its candidates; where there are too few slices for them, samples in the same order."""
    source = _source("report_b")
    if scale.name == "full":
        return source
    unit = max(train // 20, 1)
    candidates = [
        {
            **candidate,
            "filters": scale.filters_b,
            "training_slices": unit * _TWENTIETHS[candidate["training_slices"]],
        }
        for candidate in source["candidates"]
    ]
    images = max(candidate["epochs"] * candidate["training_slices"] for candidate in candidates)
    budget = {"images": images, "report_every": unit * _REPORT_TWENTIETHS, "first_rung": images}
    return {**source, "candidates": candidates, "budget": budget}


def retrained_slices(scale: Scale, train: int) -> int:
    """How many slices report B's best candidate is trained on again."""
    return _RETRAINED if scale.name == "full" else max(train // 20, 1) * _RETRAINED_TWENTIETHS


def ours(scale: Scale) -> dict[str, Any]:
    """What this package would search at that size."""
    return _source(scale.ours)
