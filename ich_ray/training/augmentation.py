"""Augment training images, with random numbers keyed by an image's place in the stream.

An augmentation draws its numbers with `stream_random`. So neither the batch size at a cut, nor the number of workers,
nor a resume changes a pixel.

The ranges of `augment` and `erase` follow those of the winners of the RSNA 2019 challenge. A head is never turned
upside down, which was measured to cost log loss; flips leave left and right alike. Neighbors of a slice are changed as
the slice is; those below and above change places by the toss of a coin of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ich_ray.model.input_shape import input_shape, mirrored_channels
from ich_ray.model.resampling import reduced, resampled

if TYPE_CHECKING:
    from ich_ray.model.hyperparameters import Hyperparameters

__all__ = ["AugmentAndErase", "Augmentation", "augmentation_of", "stream_random"]

# At strength 1, which multiplies them.
_DEGREES = 15.0
_SHIFT = 0.05  # of the side
_SCALE = 0.1
_GAIN = 0.1
_OFFSET = 0.05  # of the range of a byte
_FLIP = 0.5  # a probability, no more than this at any strength

# Of a rectangle, share of the image and height / width: Zhong et al., "Random Erasing Data Augmentation" (2017), whose
# areas reach 40 %.
_SMALLEST_AREA, _LARGEST_AREA = 0.02, 0.2
_LARGEST_ASPECT = 10 / 3  # either way

# Random numbers of an image: flip, angle, shifts, scale, gain and offset; whether to erase, area, aspect and place; and
# whether neighbors change places.
_OF_AUGMENT, _OF_ERASE, _OF_NEIGHBORS = 7, 5, 1

# Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.4 and table 2.
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


class Augmentation(Protocol):
    """Changes training images on their device; it keeps no state."""

    def __call__(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Augmented images, uint8 or float32, in the range of uint8.

        Of the same shape, or with the rows and columns that the layers of the network see.

        Args:
            images: uint8 `[n, channels, rows, columns]`; where `crop` or `scale` shows a part of each, float32 and cut.
            positions: of each image in the stream of the training, int64 `[n]`, on the same device.
            seed: of the training.
        """


@dataclass(frozen=True)
class AugmentAndErase:
    """The augmentation of `Hyperparameters.augment` and `erase`, reduction to the resolution included.

    Its images are float32: rounding them would be one more pass for less. Black is 0 before gain and offset, and again
    in a rectangle that is erased.

    Attributes:
        strength: times the ranges above.
        erase: probability of a black rectangle.
        side: rows and columns that the layers of the network see.
        mirrored: the channels of an input whose neighbors have changed places; empty without neighbors.
    """

    strength: float
    erase: float
    side: int
    mirrored: tuple[int, ...] = ()

    def __call__(
        self, images: torch.Tensor, positions: torch.Tensor, seed: int, rectangles: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Augmentation`; with `rectangles` (`model.resampling`) cut in the same pass."""
        # In double precision: sines of a batch then differ from those of another cut in no bit that float32 keeps.
        numbers = stream_random(seed, positions, _OF_AUGMENT + _OF_ERASE + _OF_NEIGHBORS).double()
        if self.strength:
            images = self._swapped(images, numbers[:, -1]) if self.mirrored else images
            affine, gain, offset = self._changes(numbers[:, :_OF_AUGMENT])
            changed = resampled(images, self.side, affine, rectangles).mul_(gain).add_(offset).clamp_(0, 255)
        else:
            changed = reduced(images, self.side, rectangles)
        if self.erase:
            changed = changed.clone() if changed is images else changed
            changed.masked_fill_(self._erased(numbers[:, _OF_AUGMENT : _OF_AUGMENT + _OF_ERASE]), 0)
        return changed

    def _swapped(self, images: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
        """The images, the neighbors of some below and above exchanged; one copy, as channels of all are picked."""
        order = torch.tensor(self.mirrored, device=images.device)
        swapped = (coins < _FLIP * min(1, self.strength))[:, None]
        channels = torch.where(swapped, order, torch.arange(len(order), device=images.device))
        starts = len(order) * torch.arange(len(images), device=images.device)[:, None]
        return images.flatten(0, 1).index_select(0, (starts + channels).flatten()).view(images.shape)

    def _changes(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From the result to its source, `[n, 2, 3]`, and the gain and offset of each image, `[n, 1, 1, 1]`."""
        flip, *others = numbers.unbind(1)
        angle, right, down, scale, gain, offset = (self.strength * (2 * number - 1) for number in others)
        mirror = 1 - 2 * (flip < _FLIP * min(1, self.strength)).double()
        angle, scale = angle * math.radians(_DEGREES), 1 + _SCALE * scale
        right, down = 2 * _SHIFT * right, 2 * _SHIFT * down  # a side is 2 long
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        turned = torch.stack([mirror * cosine, mirror * sine, -sine, cosine], 1).view(-1, 2, 2)
        moved = -(turned[:, :, 0] * right[:, None] + turned[:, :, 1] * down[:, None])
        affine = torch.cat([turned, moved[:, :, None]], 2)
        gain, offset = 1 + _GAIN * gain, 255 * _OFFSET * offset
        return affine.float(), gain.float().view(-1, 1, 1, 1), offset.float().view(-1, 1, 1, 1)

    def _erased(self, numbers: torch.Tensor) -> torch.Tensor:
        """Whether a pixel is erased, `[n, 1, side, side]`."""
        coin, area, aspect, top, left = numbers.unbind(1)
        area = _SMALLEST_AREA + (_LARGEST_AREA - _SMALLEST_AREA) * area
        aspect = torch.exp(math.log(_LARGEST_ASPECT) * (2 * aspect - 1))
        height, width = (self.side * (area * aspect).sqrt()).round(), (self.side * (area / aspect).sqrt()).round()
        rows = self._between(top, height) & (coin < self.erase)[:, None]
        return (rows[:, :, None] & self._between(left, width)[:, None, :])[:, None]

    def _between(self, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Whether a row or column is inside of a rectangle anywhere in the image, `[n, side]`."""
        first = (start * (self.side - length + 1)).floor()[:, None]
        index = torch.arange(self.side, device=start.device)
        return (index >= first) & (index < first + length[:, None])


def augmentation_of(parameters: Hyperparameters, image_shape: tuple[int, int, int]) -> AugmentAndErase | None:
    """The augmentation of a draw for images of this shape; None where training shows images as they are."""
    if not parameters.is_augmented:
        return None
    mirrored = tuple(mirrored_channels(parameters, image_shape[0])) if parameters.neighbors else ()
    return AugmentAndErase(parameters.augment, parameters.erase, input_shape(parameters, image_shape)[1], mirrored)


def stream_random(seed: int, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform random numbers in [0, 1), float32 `[len(positions), count]`, on the device of `positions`.

    A row depends on (seed, position) alone: equal in any batch, on any worker, device and after any resume. The first
    numbers of a row are the same whatever `count` is.

    Args:
        seed: the key; 64 bits of it count.
        positions: in the stream, int64 `[n]`.
        count: random numbers for each.
    """
    blocks = torch.arange(-(-count // 4), device=positions.device)
    place, block = torch.meshgrid(positions, blocks, indexing="ij")
    counter = (place & _WORD, (place >> 32) & _WORD, block, torch.zeros_like(block))
    words = torch.stack(philox(counter, (seed & _WORD, (seed >> 32) & _WORD)), 2)
    return ((words >> 8).float() * 2.0**-24).flatten(1)[:, :count]  # 24 bits fill a float32


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Four random words of each counter of four words; words are int64 tensors with values below 2 ** 32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 64 bits, whatever the sign that int64 gives them
        c0, c1, c2, c3 = ((high >> 32) & _WORD) ^ c1 ^ k0, high & _WORD, ((low >> 32) & _WORD) ^ c3 ^ k1, low & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3
