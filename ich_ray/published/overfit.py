"""Fit a few minibatches again and again, as report A chose its learning rates.

A rate at which not even those are learned is no rate for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ich_ray.data.feature_store import FeaturesInMemory
from ich_ray.data.sampling import stratified
from ich_ray.errors import TrialFailure
from ich_ray.model.networks import build_network
from ich_ray.training.frozen_features import as_features, is_divisible
from ich_ray.training.loop import TrainingBudget, train

if TYPE_CHECKING:
    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["Overfit", "frozen_features", "minibatches", "overfit"]


@dataclass(frozen=True)
class Overfit:
    """How well some minibatches were fitted.

    Attributes:
        losses: the mean weighted loss of each pass, as training saw it.
        average_precision: on the same slices after the last pass; None if it was never reached.
        failure: why it ended early, empty if it did not.
    """

    losses: tuple[float, ...]
    average_precision: float | None
    failure: str = ""


def minibatches(slices: SliceSet, batch_size: int, count: int, seed: int) -> SliceSet:
    """The slices of `count` minibatches, with the share of haemorrhage of all; all where fewer."""
    return stratified(slices, min(count * batch_size, len(slices)), seed)


def frozen_features(
    parameters: Hyperparameters, slices: SliceSet, *, seed: int, device: torch.device | str = "cpu"
) -> FeaturesInMemory | None:
    """Features of `slices` for all draws that freeze the same; None where none are frozen."""
    if not is_divisible(parameters):
        return None
    torch.manual_seed(seed)  # as training does: without weights of a file, frozen layers are what the seed made them
    network = build_network(parameters, slices.dataset.image_shape).to(device)
    return FeaturesInMemory(slices.rows, as_features(network, parameters, slices))


def overfit(
    parameters: Hyperparameters,
    slices: SliceSet,
    *,
    passes: int,
    seed: int,
    device: torch.device | str = "cpu",
    features: FeaturesInMemory | None = None,
) -> Overfit:
    """Train on `slices` alone, `passes` times over all of them.

    Args:
        parameters: the draw.
        slices: to be fitted.
        passes: over them.
        seed: of weights, order and dropout.
        device: where to train.
        features: what `frozen_features` gave for the same slices, seed and frozen layers.

    Raises:
        ConfigError: the parameters do not fit the images.
    """
    alone = parameters.model_copy(update={"training_slices": 0, "epochs": 0})
    budget = TrainingBudget(passes * len(slices), len(slices))
    losses: list[float] = []
    precision = None
    try:
        for progress in train(alone, slices, slices, budget=budget, seed=seed, device=device, features=features):
            losses.append(progress.metrics["train_loss"])
            precision = progress.metrics["average_precision"]
    except TrialFailure as failure:
        return Overfit(tuple(losses), None, failure.reason)
    return Overfit(tuple(losses), precision)
