"""Reduction and movement of images in one pass, against PyTorch, SciPy and hand-worked pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional

from ich_ray.model.resampling import reduced, resampled

UPRIGHT = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def noise(side: int, count: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_images_of_the_side_are_left_alone() -> None:
    images = noise(16)
    assert reduced(images, 16) is images


def test_half_a_side_is_the_mean_of_four_pixels() -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert reduced(image, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


@pytest.mark.parametrize("side", [42, 40, 32, 24, 16, 7])
def test_less_than_two_thirds_is_averaged_over_areas(side: int) -> None:
    images = noise(64)
    assert torch.equal(reduced(images, side), functional.interpolate(images.float(), size=side, mode="area"))


@pytest.mark.parametrize("side", [63, 50, 48, 43])
def test_two_thirds_and_more_is_interpolated_between_centers_of_pixels(side: int) -> None:
    images = noise(64)
    centers = (np.arange(side) + 0.5) * 64 / side - 0.5
    places = np.meshgrid(centers, centers, indexing="ij")
    expected = [[map_coordinates(plane, places, order=1) for plane in image] for image in images.float().numpy()]
    np.testing.assert_allclose(reduced(images, side), expected, atol=2e-3)


@pytest.mark.parametrize("side", [64, 50, 40, 32, 20])
def test_the_pass_that_moves_has_the_geometry_of_the_one_that_does_not(side: int) -> None:
    images = noise(64)
    moved = resampled(images, side, UPRIGHT.expand(2, 2, 3))
    torch.testing.assert_close(moved, reduced(images, side).float(), rtol=0, atol=5e-3)


def test_a_shift_by_whole_pixels_moves_pixels_and_leaves_black() -> None:
    images = noise(16)
    affine = torch.tensor([[[1.0, 0.0, 2 * 3 / 16], [0.0, 1.0, -2 * 2 / 16]]]).expand(2, 2, 3)
    expected = torch.zeros(2, 3, 16, 16)
    expected[:, :, 2:, :13] = images[:, :, :14, 3:]  # three pixels to the left and two down
    torch.testing.assert_close(resampled(images, 16, affine), expected, rtol=0, atol=1e-3)


def test_a_rectangle_is_shown_alone_and_black_beyond_its_image() -> None:
    images = noise(64)
    rectangles = torch.tensor([[-0.5, 0.5, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0]])
    shown = reduced(images, 32, rectangles)
    averaged = functional.avg_pool2d(images.float(), 2)
    lower_left = functional.interpolate(averaged[:1, :, 16:, :16], size=32, mode="bilinear", align_corners=False)
    # But for the edges: there the neighbors are those of the image, and black outside of it.
    torch.testing.assert_close(shown[:1, :, 1:-1, 1:-1], lower_left[:, :, 1:-1, 1:-1], rtol=0, atol=1e-3)
    torch.testing.assert_close(shown[1, :, :, :24], averaged[1, :, :, 8:], rtol=0, atol=1e-3)
    assert not shown[1, :, :, 24:].any()
    assert torch.equal(shown, resampled(images, 32, UPRIGHT.expand(2, 2, 3), rectangles))


@pytest.mark.parametrize("side", [64, 48, 24])
def test_an_image_is_the_same_in_any_batch(side: int) -> None:
    images, affine = noise(64, count=37), torch.randn(37, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = resampled(images, side, affine)
    parts = [resampled(*part) for part in zip(images.split(5), [side] * 8, affine.split(5), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat([reduced(part, side) for part in images.split(5)]), reduced(images, side))
