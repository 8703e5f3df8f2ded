"""What is shown of images: one box for a series, a square around it, a size in mm."""

from __future__ import annotations

import numpy as np
import pytest

from ich_ray.data.shown_rectangles import FIELD_MM, plausible_sides, series_boxes, shown_rectangles
from ich_ray.model.fields import NetworkFields

NO = [np.nan] * 4
WHOLE = [0, 0, 1, 1]


def test_a_series_has_the_box_around_the_heads_of_its_slices() -> None:
    boxes = np.array([[0.2, 0.3, 0.6, 0.7], [0.1, 0.4, 0.5, 0.8], NO, [0.0, 0.0, 1.0, 1.0], NO])
    found = series_boxes(np.array([7, 7, 7, 2, 4]), boxes)
    assert found[:3].tolist() == [[0.1, 0.3, 0.6, 0.8]] * 3
    assert found[3].tolist() == [0, 0, 1, 1]
    assert np.isnan(found[4]).all()


def test_slices_without_a_series_have_boxes_of_their_own() -> None:
    boxes = np.array([[0.2, 0.3, 0.6, 0.7], [0.1, 0.4, 0.5, 0.8]])
    assert series_boxes(np.array([-1, -1]), boxes).tolist() == boxes.tolist()
    assert series_boxes(np.empty(0, np.int64), np.empty((0, 4))).shape == (0, 4)


def test_a_box_much_smaller_than_others_of_its_series_is_left_out() -> None:
    head, bench = [0.2, 0.3, 0.6, 0.7], [0.9, 0.0, 0.95, 1.0]
    assert series_boxes(np.zeros(3, np.int64), np.array([head, bench, head]))[1].tolist() == head
    assert series_boxes(np.zeros(1, np.int64), np.array([bench])).tolist() == [bench]


@pytest.mark.parametrize("box", [[0.5, 0.2, 0.4, 0.6], [-1, 0, 1, 1], [0, 0, np.inf, 1], [0, 0, 0, 1], [0, 0, 1, 9]])
def test_what_is_no_box_is_not_taken_for_one(box: list[float]) -> None:
    assert np.isnan(series_boxes(np.zeros(1, np.int64), np.array([box]))).all()


def test_a_crop_is_a_square_around_the_box_with_a_margin_of_a_twentieth() -> None:
    boxes, sides = np.array([[0.2, 0.3, 0.6, 0.5], NO]), np.array([500.0, 500.0])
    # 0.4 high and 0.2 wide, around row 0.4 and column 0.4: from -1 to 1 that is 0.8 and -0.2.
    found = shown_rectangles(NetworkFields(crop="head"), boxes, sides)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[-0.2, -0.2, 0.44, 0.44], WHOLE]))
    assert shown_rectangles(NetworkFields(), boxes, sides).tolist() == [WHOLE] * 2


def test_a_head_is_at_least_150_mm_large() -> None:
    boxes, sides = np.array([[0.4, 0.3, 0.5, 0.4]] * 4), np.array([300.0, 600.0, 100.0, np.nan])
    found = shown_rectangles(NetworkFields(crop="head"), boxes, sides)
    assert found == pytest.approx(np.array([[-0.3, -0.1, half, half] for half in (0.5, 0.25, 1, 0.5)]))


def test_a_scale_in_mm_shows_so_many_of_them() -> None:
    boxes = np.array([[0.2, 0.3, 0.8, 0.5]] * 4)
    sides = np.array([FIELD_MM, 480.0, np.nan, 0.001])
    found = shown_rectangles(NetworkFields(scale="mm"), boxes, sides)
    assert found.tolist() == [WHOLE, [0, 0, 0.5, 0.5], WHOLE, WHOLE]
    both = shown_rectangles(NetworkFields(scale="mm", crop="head"), boxes, sides)
    assert both == pytest.approx(np.array([[-0.2, 0, half, half] for half in (1, 0.5, 0.66, 0.66)]))
    assert plausible_sides(np.array([0, -5, 49, 50, 1000, 1001, np.inf, np.nan])).tolist() == [
        False, False, False, True, True, False, False, False
    ]  # fmt: skip
