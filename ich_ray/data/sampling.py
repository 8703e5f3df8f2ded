"""Part of a set of slices, drawn at random with the share of haemorrhage of the whole.

Knows labels and a seed. It does not know patients: it takes from one role, and roles are drawn elsewhere.
"""

from __future__ import annotations

import numpy as np

from ich_ray.data.dataset import SliceSet
from ich_ray.errors import ConfigError

__all__ = ["stratified"]


def stratified(slices: SliceSet, count: int, seed: int) -> SliceSet:
    """Draw `count` of the slices, stratified by label, at least one of each class that is there.

    The order of the set is kept, and the same seed takes the same slices.

    Raises:
        ConfigError: there are fewer.
    """
    if count > len(slices):
        raise ConfigError(
            f"training_slices: at most the {len(slices):,} slices to train on can be drawn, got {count:,}; lower it, "
            "or prepare more patients"
        )
    rng = np.random.default_rng((seed, count))
    positive, negative = np.flatnonzero(slices.labels > 0.5), np.flatnonzero(slices.labels <= 0.5)
    wanted = round(count * slices.prevalence)
    positives = min(max(wanted, min(1, len(positive)), count - len(negative)), count - min(1, len(negative)))
    taken = [rng.permutation(positive)[:positives], rng.permutation(negative)[: count - positives]]
    return SliceSet(slices.dataset, slices.rows[np.sort(np.concatenate(taken))])
