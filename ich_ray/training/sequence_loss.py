"""Loss of a sequence model: cross-entropy of known labels of slices and examinations.

Of a series the mean over the slices of which a label is known counts, so that a thin series counts no more than a thick
one; then the weighted mean over labels, and over series with labels. Slices at one place share a logit, each with the
label that it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.training.sequence_batches import SeriesBatch
    from ich_ray.training.sequence_set import SequenceSet

__all__ = ["SequenceLoss"]


class SequenceLoss:
    """The loss of a training, which knows the targets of all its series.

    Args:
        parameters: `study_weight` and `any_weight`.
        given: what is learned from.
        device: where logits lie.

    Raises:
        ConfigError: `any` is known of one class only, of slices as of examinations that count.
    """

    def __init__(self, parameters: SequenceParameters, given: SequenceSet, device: torch.device) -> None:
        _check_classes(parameters, given)
        of_labels = np.ones(len(given.labels))
        of_labels[-1] = parameters.any_weight
        targets, counts = _of_places(given)
        totals = np.zeros(given.study_targets.shape)
        of_place = np.repeat(np.arange(len(given)), given.order.lengths)
        np.add.at(totals, of_place, counts)
        shares = counts / np.maximum(totals, 1)[of_place] * of_labels
        known = ~np.isnan(given.study_targets) * of_labels
        self._targets = torch.from_numpy(targets).to(device)
        self._weights = _scaled(shares, len(given)).to(device)
        self._study_targets = torch.from_numpy(np.nan_to_num(given.study_targets)).to(device)
        self._study_weights = (parameters.study_weight * _scaled(known, len(given))).to(device)

    def __call__(
        self, slices: torch.Tensor, study: torch.Tensor, batch: SeriesBatch, series: torch.Tensor
    ) -> torch.Tensor:
        """The sum over a batch; `series` says which these are."""
        weights = self._weights[batch.places] * batch.mask.unsqueeze(2)
        of_slices = binary_cross_entropy_with_logits(slices, self._targets[batch.places], weights, reduction="sum")
        return of_slices + binary_cross_entropy_with_logits(
            study, self._study_targets[series], self._study_weights[series], reduction="sum"
        )


def _of_places(given: SequenceSet) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The mean target of the slices of each place, and of how many slices it is known."""
    known = ~np.isnan(given.targets)
    positive, counts = np.zeros((2, len(given.order.places_mm), known.shape[1]))
    np.add.at(positive, given.order.place, np.nan_to_num(given.targets))
    np.add.at(counts, given.order.place, known)
    return (positive / np.maximum(counts, 1)).astype(np.float32), counts


def _scaled(weights: NDArray[np.float64], series: int) -> torch.Tensor:
    """Weights whose sum is the number of series, so that a mean over series is one of what is known."""
    total = weights.sum()
    return torch.from_numpy((weights * (series / total if total else 0.0)).astype(np.float32))


def _check_classes(parameters: SequenceParameters, given: SequenceSet) -> None:
    told = {"slices": given.targets[:, -1]}
    if parameters.study_weight:
        told["examinations"] = given.study_targets[:, -1]
    counts = {name: [int((values == value).sum()) for value in (1, 0)] for name, values in told.items()}
    if not any(min(each) for each in counts.values()):
        found = " and ".join(f"{name} {n1} with and {n0} without" for name, (n1, n0) in counts.items())
        raise ConfigError(
            "train role: slices or examinations with and without haemorrhage must be there for a sequence model, got "
            f"{found}; prepare a dataset with more patients"
        )
