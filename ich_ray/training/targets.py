"""What training slices teach a network: a target for each of its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.fields import NetworkFields

__all__ = ["known_targets"]


def known_targets(parameters: NetworkFields, slices: SliceSet) -> NDArray[np.float32]:
    """0 or 1, NaN where a label is unknown, float32 `[n, labels]`, `any` last.

    Raises:
        ConfigError: subtypes are asked for, and no slice has a label for any.
    """
    targets = slices.targets(parameters.predicted_labels)
    if parameters.labels == "all" and np.isnan(targets[:, :-1]).all():
        raise ConfigError(
            "labels: all needs slices whose subtypes are known, got `any` alone; prepare with a label table that has "
            "subtypes, or use labels: any"
        )
    return targets
