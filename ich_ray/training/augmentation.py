"""Augment training images, with random numbers keyed by an image's place in the stream.

An augmentation draws its numbers with `stream_random`. So neither the batch size at a cut, nor the number of workers,
nor a resume changes a pixel.
"""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["Augmentation", "stream_random"]

# Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.4 and table 2.
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


class Augmentation(Protocol):
    """Changes training images on their device; it keeps no state."""

    def __call__(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Augmented images of the same shape, uint8 or float32, in the range of uint8.

        Args:
            images: uint8 `[n, channels, rows, columns]`.
            positions: of each image in the stream of the training, int64 `[n]`, on the same device.
            seed: of the training.
        """


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
