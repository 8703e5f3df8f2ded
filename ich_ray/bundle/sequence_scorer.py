"""Score whole series: own logits and features of their slices in, blended logits out.

One function for datasets and for files: `evaluate` and `predict` give a slice the same logit. Knows no images.

Array shapes: own logits are float32 `[n, labels]`, features `[n, d]`, in any order; series and places as in
data/series_order.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.data.sequence_features import as_stored
from ich_ray.data.series_order import ordered_series
from ich_ray.training.sequence_batches import sequence_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from ich_ray.bundle.sequence_note import Blend
    from ich_ray.model.sequence_networks import SequenceNetwork

__all__ = ["SequenceAnswers", "SequenceScorer"]


@dataclass(frozen=True)
class SequenceAnswers:
    """What is said of some slices.

    Attributes:
        own: logits of the network, `[n, labels]`.
        logits: blended with those of the sequence model, `[n, labels]`; at one place they are the same but for `own`.
        series: of the study head for the series of each slice, `[n, labels]`. Slices whose place is not known are
            series of their own; the highest of them and of the others is that of their series.
    """

    own: NDArray[np.float32]
    logits: NDArray[np.float32]
    series: NDArray[np.float32]

    def at(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> SequenceAnswers:
        """Of some of the slices."""
        return SequenceAnswers(self.own[places], self.logits[places], self.series[places])

    @classmethod
    def joined(cls, parts: Sequence[SequenceAnswers]) -> SequenceAnswers:
        """Of the slices of all parts, in turn."""
        columns = ([getattr(part, name) for part in parts] for name in ("own", "logits", "series"))
        return cls(*map(np.concatenate, columns))


class SequenceScorer:
    """A sequence network and its blend.

    Args:
        network: on `device`, in evaluation mode.
        blend: of each label, `any` last.
    """

    def __init__(self, network: SequenceNetwork, blend: Sequence[Blend], device: torch.device) -> None:
        self.network, self._device = network.to(device).eval(), device
        self._blend = np.array([[one.own, one.sequence, one.bias] for one in blend], np.float32)

    def __call__(
        self,
        own: NDArray[np.float32],
        features: NDArray[np.floating[Any]],
        series: NDArray[np.int64],
        places_mm: NDArray[np.float64],
    ) -> SequenceAnswers:
        """Answers for slices of whole series.

        Args:
            own: logits of the network.
            features: of the slices; rounded to float16 as those that the sequence model was trained on.
            series: of each slice, negative without one.
            places_mm: of each slice along its series, NaN where not known.
        """
        order = ordered_series(series, places_mm)
        said = sequence_logits(self.network, as_stored(features), order, self._device)
        weight, weight_of_sequence, bias = self._blend.T
        logits = weight * own + weight_of_sequence * said.slices + bias
        return SequenceAnswers(own, logits, _highest(said.study[order.series], series))


def _highest(values: NDArray[np.float32], series: NDArray[np.int64]) -> NDArray[np.float32]:
    """The highest value of each column among the slices of one series."""
    groups = np.where(series < 0, series.max(initial=-1) + 1 + np.arange(len(series)), series)
    _, number = np.unique(groups, return_inverse=True)
    highest = np.full((number.max(initial=-1) + 1, values.shape[1]), -np.inf, np.float32)
    np.maximum.at(highest, number, values)
    return highest[number]
