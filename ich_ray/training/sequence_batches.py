"""Series side by side, as a sequence model is given them, and what it answers of all.

Slices at one place are averaged. A batch is cut into parts of about as many places, so that memory stays bounded
however long a series is; none is cut in two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from ich_ray.training.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ich_ray.data.series_order import SeriesOrder
    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.training.sequence_set import FeatureRows
    from ich_ray.vocabulary import Precision

__all__ = ["PlaceFeatures", "SequenceLogits", "SeriesBatch", "sequence_logits", "short_parts"]

# In a part of a batch, with what pads it: 256 series of 32 slices. Of 2,048 features and their differences it takes
# 0.2 GB.
MOST_PLACES = 8192
_DEVICE_SHARE = 0.25  # of the free memory of an accelerator, beyond which features stay on the host
# Mean and deviation of so many places are those of all within 1 %.
_SAMPLED_PLACES = 65_536


class SeriesBatch(NamedTuple):
    """What a sequence model is given of some series.

    `places` says which of all places each is, 0 behind the end.
    """

    features: torch.Tensor
    places_mm: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor


class SequenceLogits(NamedTuple):
    """Of slices, in the order of their rows, float32 `[n, labels]`, and of series, `[series, labels]`."""

    slices: NDArray[np.float32]
    study: NDArray[np.float32]


class PlaceFeatures:
    """The features of the places of all series, on the device where they fit.

    Else they are gathered from where they lie, a batch at a time.

    Args:
        features: of slices.
        order: of these slices.
        device: where batches are wanted.
        trials: that share it.
    """

    def __init__(self, features: FeatureRows, order: SeriesOrder, device: torch.device, trials: int = 1) -> None:
        self.order, self.device, self._features = order, device, features
        self.first = np.empty(len(order.places_mm), np.int64)
        self.first[order.place[::-1]] = np.arange(len(order.place))[::-1]
        count = np.bincount(order.place, minlength=len(self.first))
        repeated = np.flatnonzero(count > 1)
        self._averaged = np.full(len(self.first), -1)
        self._averaged[repeated] = np.arange(len(repeated))
        self._means = self._mean_of(repeated)
        self._held = self._hold(trials)

    @property
    def where(self) -> Literal["device", "host"]:
        return "host" if self._held is None else "device"

    def gathered(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of places, float32 `[len(places), d]`."""
        found = self._features[self.first[places]].astype(np.float32)
        averaged = self._averaged[places]
        found[averaged >= 0] = self._means[averaged[averaged >= 0]]
        return found

    def take(self, series: NDArray[np.int64]) -> SeriesBatch:
        """Some series side by side, on the device."""
        index, mask = self.order.padded(series)
        on_device, there = torch.from_numpy(index).to(self.device), torch.from_numpy(mask).to(self.device)
        if self._held is None:
            padded = np.zeros((*index.shape, self._features.shape[1]), np.float32)
            padded[mask] = self.gathered(index[mask])
            features = torch.from_numpy(padded).to(self.device)
        else:
            features = self._held[on_device]
        return SeriesBatch(features, torch.from_numpy(self.order.places_mm[index]).to(self.device), there, on_device)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each feature over places, at most 65,536 of them."""
        total = len(self.first)
        chosen = np.unique(np.linspace(0, total - 1, min(total, _SAMPLED_PLACES)).astype(np.int64))
        sums = np.zeros((2, self._features.shape[1]))
        for begin in range(0, len(chosen), MOST_PLACES):
            part = self.gathered(chosen[begin : begin + MOST_PLACES]).astype(np.float64)
            sums += part.sum(0), np.square(part).sum(0)
        mean, square = sums / len(chosen)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(deviation.astype(np.float32))

    def _mean_of(self, repeated: NDArray[np.int64]) -> NDArray[np.float32]:
        """The mean features of places with several slices."""
        rows = np.flatnonzero(np.isin(self.order.place, repeated))
        which = self._averaged[self.order.place[rows]]
        total = np.zeros((len(repeated), self._features.shape[1]))
        for begin in range(0, len(rows), MOST_PLACES):
            part = slice(begin, begin + MOST_PLACES)
            np.add.at(total, which[part], self._features[rows[part]])
        return np.asarray(total / np.bincount(which, minlength=len(repeated))[:, None], np.float32)

    def _hold(self, trials: int) -> torch.Tensor | None:
        if self.device.type != "cuda":
            return None
        shape = (len(self.first), self._features.shape[1])
        free, _ = torch.cuda.mem_get_info(self.device)
        if 2 * shape[0] * shape[1] > _DEVICE_SHARE * free / trials:
            return None
        held = torch.empty(shape, dtype=torch.float16, device=self.device)
        for begin in range(0, shape[0], MOST_PLACES):
            part = np.arange(begin, min(begin + MOST_PLACES, shape[0]))
            held[begin : begin + len(part)] = torch.from_numpy(self.gathered(part))
        return held


def short_parts(series: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Series by length, in parts of at most 8,192 places with what pads them, or of one series."""
    ordered = series[np.argsort(lengths[series], kind="stable")]
    begin = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - begin) * lengths[ordered[end]] > MOST_PLACES:
            yield ordered[begin:end]
            begin = end


def sequence_logits(
    network: SequenceNetwork,
    features: FeatureRows | PlaceFeatures,
    order: SeriesOrder,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> SequenceLogits:
    """What a sequence model says of slices and of their series, in evaluation mode.

    Args:
        network: on the device.
        features: of the slices.
        order: of the slices.
        device: where to compute.
        precision: by default full.
    """
    where = torch.device(device)
    places = features if isinstance(features, PlaceFeatures) else PlaceFeatures(features, order, where)
    of_places = np.empty((len(order.places_mm), network.labels), np.float32)
    of_series = np.empty((len(order), network.labels), np.float32)
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        for part in short_parts(np.arange(len(order)), order.lengths):
            batch = places.take(part)
            with autocast(precision, where):
                slices, study = network(batch.features, batch.places_mm, batch.mask)
            of_places[batch.places[batch.mask].cpu().numpy()] = slices[batch.mask].cpu().numpy()
            of_series[part] = study.cpu().numpy()
    network.train(was_training)
    return SequenceLogits(of_places[order.place], of_series)
