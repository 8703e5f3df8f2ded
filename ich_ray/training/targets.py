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
        ConfigError: subtypes are asked for, and one of them is known of no slice with haemorrhage: its logit would be
            trained by nothing.
    """
    names = parameters.predicted_labels
    targets = slices.targets(names)
    unknown = [
        name for name, column in zip(names, targets[slices.labels == 1].T, strict=True) if np.isnan(column).all()
    ]
    if len(slices) and unknown and len(names) > 1 and slices.labels.any():
        raise ConfigError(
            f"labels: all needs slices with haemorrhage whose subtypes are known, got none for {', '.join(unknown)}; "
            "prepare with a label table that has them, or use labels: any"
        )
    return targets
