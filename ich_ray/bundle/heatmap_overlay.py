"""Heat over a slice, as color. Knows arrays only, so that a report without PyTorch can use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["overlay", "strength"]

_COLOR = np.array([255.0, 80.0, 0.0])  # orange: apart from every grey of CT
_OPACITY = 0.65


def overlay(grey: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Color uint8 `[rows, columns, 3]`: the slice `[rows, columns]` under orange as opaque as its heat."""
    opacity = (_OPACITY * np.clip(heat, 0, 1))[..., None]
    return np.asarray(np.round(grey[..., None] * (1 - opacity) + _COLOR * opacity), np.uint8)


def strength(probability: float, threshold: float) -> float:
    """The opacity of a heat map, from 0 to 1: full from the threshold on, fading below.

    Each map has a brightest spot, and that of a slice without haemorrhage must not look like a finding.
    """
    return min(1.0, probability / max(threshold, 1e-9))
