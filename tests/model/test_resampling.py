"""Reduction and movement of images in one pass, against PyTorch, SciPy and hand-worked pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional

from ich_ray.model.resampling import points_a_pixel, reduced, resampled

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


def test_a_rectangle_is_a_crop_that_is_averaged_by_its_own_factor() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    # Rows 2 to 5 and columns 4 to 7 to 2 x 2: the means of four pixels.
    rectangle = torch.tensor([[0.5, 0.0, 0.5, 0.5]])
    crop = image[0, 0, 2:6, 4:].numpy().astype(float)
    assert crop.reshape(2, 2, 2, 2).mean((1, 3)).tolist() == [[24.5, 26.5], [40.5, 42.5]]
    assert reduced(image, 2, rectangle)[0, 0].numpy() == pytest.approx(np.array([[24.5, 26.5], [40.5, 42.5]]))
    # To 4 x 4, the crop itself, and the whole of it to 4 x 4 with means of four.
    assert reduced(image, 4, rectangle)[0, 0].numpy() == pytest.approx(crop)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(reduced(image, 4, whole), reduced(image, 4))


@pytest.mark.parametrize(
    ("half", "side"), [(0.5, 32), (0.75, 48), (1.0, 32), (1.0, 16), (0.5, 16), (0.75, 24), (0.75, 16)]
)
def test_rectangles_of_noise_are_the_areas_of_numpy(half: float, side: int) -> None:
    """Each pixel of the result covers the same whole number of pixels of the image."""
    images, size = noise(64), round(64 * half)
    first, factor = (64 - size) // 2, size // side
    crop = images[:, :, first : first + size, first : first + size].numpy().astype(float)
    expected = crop.reshape(2, 3, side, factor, side, factor).mean((3, 5))
    found = reduced(images, side, torch.tensor([[0.0, 0.0, half, half]]).expand(2, 4)).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_a_rectangle_is_black_beyond_its_image() -> None:
    images = noise(64)
    rectangles = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 1.0]])
    shown = reduced(images, 32, rectangles)
    averaged = functional.avg_pool2d(images.float(), 2)
    torch.testing.assert_close(shown[0], averaged[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(shown[1, :, :, :24], averaged[1, :, :, 8:], rtol=0, atol=1e-3)
    assert not shown[1, :, :, 24:].any()
    assert torch.equal(shown, resampled(images, 32, UPRIGHT.expand(2, 2, 3), rectangles))


@pytest.mark.parametrize(
    ("of", "side", "points"), [(128, 128, 1), (128, 86, 1), (128, 85, 2), (512, 256, 2), (512, 224, 3)]
)
def test_points_a_pixel_follow_from_the_sides(of: int, side: int, points: int) -> None:
    assert points_a_pixel(of, side) == points


@pytest.mark.parametrize("side", [64, 48, 24])
def test_an_image_is_the_same_in_any_batch(side: int) -> None:
    images, affine = noise(64, count=37), torch.randn(37, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = resampled(images, side, affine)
    parts = [resampled(*part) for part in zip(images.split(5), [side] * 8, affine.split(5), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat([reduced(part, side) for part in images.split(5)]), reduced(images, side))
    rectangles = torch.rand(37, 4, generator=torch.Generator().manual_seed(2))
    cut = [
        resampled(*part) for part in zip(images.split(5), [side] * 8, affine.split(5), rectangles.split(5), strict=True)
    ]
    assert torch.equal(torch.cat(cut), resampled(images, side, affine, rectangles))
