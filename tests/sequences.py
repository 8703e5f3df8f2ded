"""Features of series with bleedings that continue over slices, made without images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ich_ray.data.series_order import ordered_series
from ich_ray.training.sequence_set import SequenceSet

FEATURES = 8


def make_series(series: int = 40, slices: int = 12, seed: int = 0, noise: float = 1.0) -> SequenceSet:
    """Half of the series bleed, over 3 to 5 slices in a row, which one slice shows worse than its neighbors together.

    Rows of all series are mixed. Labels are `subdural` and `any`.
    """
    random = np.random.default_rng(seed)
    number, step = (part.ravel() for part in np.meshgrid(np.arange(series), np.arange(slices), indexing="ij"))
    begins, lengths = random.integers(0, slices - 5, series), random.integers(3, 6, series)
    bleeds = (np.arange(series) % 2 == 0)[number]
    shown = bleeds & (step >= begins[number]) & (step < (begins + lengths)[number])
    subdural = shown & (number % 4 == 0)
    features = random.normal(0, noise, (len(number), FEATURES))
    features[:, 0] += shown
    features[:, 1] += subdural
    mixed = random.permutation(len(number))
    number, step, targets = number[mixed], step[mixed], np.stack([subdural, shown], 1)[mixed].astype(np.float32)
    study = np.zeros((series, 2), np.float32)
    np.maximum.at(study, number, targets)
    return SequenceSet(
        features=features[mixed].astype(np.float16),
        order=ordered_series(number, step * 5.0),
        targets=targets,
        study_targets=study,
        studies=np.arange(series),
        patients=np.array([f"p{one}" for one in number], object),
        labels=("subdural", "any"),
        fingerprint=f"{series} {slices} {seed}",
    )


def without_slice_labels(given: SequenceSet) -> SequenceSet:
    return replace(given, targets=np.full_like(given.targets, np.nan))
