"""The network of a bundle and its sequence model together: what both say of slices of whole series.

Whoever asks for some slices of a series gets what all of its slices say of these: they are read whole, and a part at a
time, so that memory does not grow with a dataset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.bundle.sequence_scorer import SequenceAnswers, SequenceScorer
from ich_ray.data.dataset import SliceSet
from ich_ray.data.series_survey import number_series, numbers
from ich_ray.errors import ConfigError
from ich_ray.model.pooled_features import FeatureNetwork
from ich_ray.training.feature_pass import batch_features, predict_features
from ich_ray.training.network_inputs import check_whole_series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.sequence_note import SequenceNote
    from ich_ray.model.sequence_networks import SequenceNetwork

__all__ = ["SeriesModel"]

# Whose features are in memory at a time, and those of the series that is then begun: 32 MB of 2,048 each.
_ROWS_AT_ONCE = 4096


class SeriesModel:
    """Both networks of a bundle, on one device; threads may share it.

    Attributes:
        seeing: the network, or its mean over the views of test-time augmentation, that also tells its features.

    Raises:
        ConfigError: the network has other features than the sequence model was made for.
    """

    def __init__(
        self, model: nn.Module, sequence: SequenceNetwork, card: Card, note: SequenceNote, device: torch.device
    ) -> None:
        self._card, self._device = card, device
        self.seeing = FeatureNetwork(model, card.input_shape).eval()  # and stays so, whichever thread ends first
        if self.seeing.width != note.features:
            raise ConfigError(
                f"sequence: features must be as many as {self.seeing.width} of the network, got {note.features}"
            )
        self._labels = len(card.parameters.predicted_labels)
        self._scorer = SequenceScorer(sequence, note.blends(card.parameters.predicted_labels), device)
        # What was said last: calibration and evaluation ask for slices, their studies and the network's own logits.
        self._last: tuple[SliceSet, SequenceAnswers] | None = None

    def seen(self, batches: Iterable[torch.Tensor]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Own logits `[n, labels]` and features `[n, d]` of all images of the batches."""
        return batch_features(self.seeing, batches, self._labels)

    def __call__(
        self,
        own: NDArray[np.float32],
        features: NDArray[np.floating[Any]],
        series: NDArray[np.int64],
        places_mm: NDArray[np.float64],
    ) -> SequenceAnswers:
        """Answers for slices of whole series, see `SequenceScorer`."""
        return self._scorer(own, features, series, places_mm)

    def alone(self, batches: Iterable[torch.Tensor]) -> SequenceAnswers:
        """Answers for images that know of no series: each is one."""
        own, features = self.seen(batches)
        return self._scorer(own, features, np.full(len(own), -1), np.full(len(own), np.nan))

    def slices(self, slices: SliceSet) -> SequenceAnswers:
        """Answers for slices of a dataset, in their order.

        Raises:
            ConfigError: its roles were drawn by slice, so that other slices of a series may be of another role.
        """
        if self._last is not None and self._is_of(slices, self._last[0]):
            return self._last[1]
        check_whole_series(slices.dataset)
        series = number_series(slices.dataset.slices)
        places_mm = numbers(slices.dataset.slices, "position_mm")
        rows, answers = [], []
        for part in _whole_series(series, slices.rows):
            of_part = SliceSet(slices.dataset, part)
            own, features = predict_features(self.seeing, of_part, self._card.parameters, self._device)
            rows.append(part)
            answers.append(self._scorer(own, features, series[part], places_mm[part]))
        found = SequenceAnswers.joined(answers).at(_positions(np.concatenate(rows), slices.rows))
        self._last = slices, found
        return found

    @staticmethod
    def _is_of(one: SliceSet, other: SliceSet) -> bool:
        return one.dataset is other.dataset and np.array_equal(one.rows, other.rows)


def _whole_series(series: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """All rows of the series of some rows, and those of these without one; some whole series at a time."""
    wanted = np.zeros(len(series), bool)
    wanted[rows] = True
    of_series = np.unique(series[rows])
    wanted |= np.isin(series, of_series[of_series >= 0])
    found = np.flatnonzero(wanted)
    found = found[np.argsort(series[found], kind="stable")]
    begins = np.flatnonzero((np.diff(series[found], prepend=-2) != 0) | (series[found] < 0))
    start = 0
    for begin in begins.tolist():
        if begin - start >= _ROWS_AT_ONCE:
            yield found[start:begin]
            start = begin
    yield found[start:]


def _positions(among: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of `rows` stands `among` distinct ones."""
    order = np.argsort(among)
    return order[np.searchsorted(among, rows, sorter=order)]
