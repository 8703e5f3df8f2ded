"""Noise of a CT scanner: filtered-backprojection grain in HU, and images enlarged to its matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

if TYPE_CHECKING:
    from ich_ray.ct.anatomy import Pixels

__all__ = ["ScannerNoise", "doubled", "drawn_size"]

_DRAWN_PIXELS = 256  # Larger images are drawn at half their size: anatomy has no detail finer than a pixel of these.
_SHIFTS = 64  # Noise is drawn this many pixels larger than a slice.


@dataclass(frozen=True)
class ScannerNoise:
    """Two images of noise in HU, larger than a slice, to be shifted and mixed for each one."""

    tiles: tuple[Pixels, Pixels]

    @classmethod
    def draw(
        cls, rng: np.random.Generator, size: int, fov_mm: float, hu: float, sharpness_per_mm: float
    ) -> ScannerNoise:
        """Noise of standard deviation `hu`.

        Filtered backprojection passes noise in proportion to the spatial frequency until the kernel cuts it off, which
        gives its fine, even grain. The frequencies are physical, so the grain does not depend on `size`.
        """
        frequency = fft.fftfreq(size + _SHIFTS, fov_mm / size).astype(np.float32)
        kernel = np.exp(-((frequency / np.float32(sharpness_per_mm)) ** 2))
        power = np.sqrt(frequency[:, None] ** 2 + frequency**2 + np.float32(1e-4)) * (kernel[:, None] * kernel) ** 2
        white = rng.standard_normal((*power.shape, 2), np.float32).view(np.complex64)[..., 0]
        grain = fft.ifft2(np.sqrt(power) * white, overwrite_x=True)
        grain *= np.float32(hu) / grain.real.std()
        return cls((np.ascontiguousarray(grain.real), np.ascontiguousarray(grain.imag)))

    def add(self, image: Pixels, rng: np.random.Generator) -> None:
        """Add noise of its own to a slice, in place."""
        size = len(image)
        mix, shifts = rng.uniform(0, 2 * np.pi), rng.integers(_SHIFTS, size=(2, 2))
        for tile, weight, (row, column) in zip(self.tiles, (np.cos(mix), np.sin(mix)), shifts, strict=True):
            image += np.float32(weight) * tile[row : row + size, column : column + size]


def drawn_size(size: int) -> int:
    """Rows and columns in which an image of `size` is drawn, before `doubled`."""
    return size if size <= _DRAWN_PIXELS else size // 2


def doubled(image: Pixels) -> Pixels:
    """Twice the rows and columns, by linear interpolation between pixel centers."""
    for axis in (1, 0):  # rows last, so that they end up contiguous
        image = np.moveaxis(image, axis, 0)
        padded = np.concatenate([image[:1], image, image[-1:]])
        wide = np.empty((2 * len(image), *image.shape[1:]), np.float32)
        wide[::2] = 0.75 * image + 0.25 * padded[:-2]
        wide[1::2] = 0.75 * image + 0.25 * padded[2:]
        image = np.moveaxis(wide, 0, axis)
    return np.ascontiguousarray(image)
