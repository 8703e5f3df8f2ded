"""Thin series averaged in HU: who is in the slab around a slice, with which weight, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_ray.ct.dicom import CTSlice, read_slice
from ich_ray.ct.slabs import SeriesGeometry, SlabReader, SlabRule, Slabs, mean_slice, slabs_around
from ich_ray.ct.windowing import parse_windows, window_slice
from ich_ray.errors import Rejection
from tests.ct.files import head, make

NAN = float("nan")
FIVE = SlabRule(5.0, 5.0)


def geometry(places_mm: list[float], **changes: Any) -> SeriesGeometry:
    """An axial series; `changes` are fields, of all slices or of each."""
    count = len(places_mm)
    values: dict[str, Any] = {
        "series": np.zeros(count, np.int64),
        "places_mm": np.array(places_mm, float),
        "thickness_mm": np.full(count, NAN),
        "corners": np.stack([np.full(count, -125.0), np.full(count, -100.0), np.array(places_mm, float)], 1),
        "normals": np.tile([0.0, 0.0, 1.0], (count, 1)),
        "sizes": np.full((count, 2), 512),
        "pixel_mm": np.full(count, 0.5),
        "ranks": np.arange(count),
    }
    return SeriesGeometry(**{name: np.array(changes.get(name, value)) for name, value in values.items()})


def slabs(places_mm: list[float], rule: SlabRule = FIVE, **changes: Any) -> Slabs:
    return slabs_around(geometry(places_mm, **changes), rule)


def around(found: Slabs, row: int) -> dict[int, float]:
    """Members and weights; an empty slab is of a series that is not averaged."""
    return {member: round(weight, 4) for member, weight in found.around(row)}


def steps(count: int, step_mm: float) -> list[float]:
    return [round(step_mm * row - 40, 4) for row in range(count)]


def test_slices_of_0_625_mm_make_slabs_of_5_mm_out_of_nine_with_halves_at_the_ends() -> None:
    found = slabs(steps(24, 0.625))
    assert found.finer.all()
    assert around(found, 12) == {8: 0.0625, **dict.fromkeys(range(9, 16), 0.125), 16: 0.0625}


@pytest.mark.parametrize(
    ("step_mm", "expected"),
    [
        (1.0, {-2: 0.2, -1: 0.2, 0: 0.2, 1: 0.2, 2: 0.2}),
        (1.25, {-2: 0.125, -1: 0.25, 0: 0.25, 1: 0.25, 2: 0.125}),
        (2.0, {-1: 0.3, 0: 0.4, 1: 0.3}),
        (2.5, {}),
        (5.0, {}),
    ],
)
def test_weights_are_the_shares_of_extents_inside(step_mm: float, expected: dict[int, float]) -> None:
    found = slabs(steps(21, step_mm))
    assert around(found, 10) == {10 + offset: weight for offset, weight in expected.items()}
    assert found.finer.all() == (step_mm < 2.5)


def test_at_the_ends_the_mean_is_over_what_is_there() -> None:
    found = slabs(steps(11, 1.0))
    assert around(found, 0) == {0: 0.3333, 1: 0.3333, 2: 0.3333}
    assert around(found, 9) == {7: 0.25, 8: 0.25, 9: 0.25, 10: 0.25}


def test_a_gap_is_not_filled() -> None:
    found = slabs([0, 1, 2, 3, 4, 30, 31, 32, 50])
    assert around(found, 4) == {2: 0.3333, 3: 0.3333, 4: 0.3333}
    assert around(found, 6) == {5: 0.3333, 6: 0.3333, 7: 0.3333}
    assert around(found, 8) == {8: 1.0}
    assert found.finer[8]


def test_rows_in_any_order_have_the_same_slabs() -> None:
    order = np.random.default_rng(0).permutation(24)
    plain, mixed = slabs(steps(24, 0.625)), slabs([steps(24, 0.625)[row] for row in order])
    for row, original in enumerate(order):
        assert {order[member]: weight for member, weight in around(mixed, row).items()} == around(plain, original)


def test_of_two_slices_at_one_place_each_is_in_its_own_slab_and_the_first_by_rank_in_others() -> None:
    found = slabs([0, 1, 1.005, 2, 3], ranks=np.array([0, 2, 1, 3, 4]))
    assert around(found, 1) == {0: 0.25, 1: 0.25, 3: 0.25, 4: 0.25}
    assert set(around(found, 2)) == {0, 2, 3, 4}
    assert set(around(found, 3)) == {0, 2, 3, 4}


@pytest.mark.parametrize("places_mm", [[], [7.0], [7.0, 7.0], [NAN, NAN, NAN]])
def test_without_two_places_nothing_is_averaged(places_mm: list[float]) -> None:
    found = slabs(places_mm)
    assert not found.finer.any()
    assert [around(found, row) for row in range(len(places_mm))] == [{}] * len(places_mm)


def test_series_are_apart_and_slices_without_one_stay_as_they_are() -> None:
    places = [*steps(11, 1.0), *steps(11, 5.0), *steps(11, 1.0)]
    found = slabs(places, series=np.repeat([3, 8, -1], 11))
    assert found.finer.tolist() == [True] * 11 + [False] * 22
    assert [len(around(found, row)) for row in (5, 16, 27)] == [5, 0, 0]


@pytest.mark.parametrize(
    ("thickness_mm", "averaged"), [(NAN, True), (0.625, True), (2.4, True), (2.5, False), (5, False)]
)
def test_overlapping_slices_that_are_thick_already_stay_as_they_are(thickness_mm: float, averaged: bool) -> None:
    found = slabs(steps(11, 1.0), thickness_mm=np.full(11, thickness_mm))
    assert found.finer.tolist() == [averaged] * 11


@pytest.mark.parametrize("half_mm", [0.6, 0.7, 1.2, 2.4, 2.5])
def test_half_of_a_slab_is_never_finer_however_places_were_rounded(half_mm: float) -> None:
    """Of float32, 0.6 lies above 0.6 and 0.7 below 0.7."""
    for start_mm in (-312.3, -40.0, 0.1, 77.7):
        places = np.array([round(start_mm + half_mm * row, 4) for row in range(40)])
        for kind in (np.float32, np.float64):
            rounded = places.astype(kind).astype(float).tolist()
            for thickness_mm in (NAN, float(kind(half_mm)), 0.1):
                found = slabs(rounded, SlabRule(2 * half_mm, 2 * half_mm), thickness_mm=np.full(40, thickness_mm))
                assert not found.finer.any()
    rule = SlabRule(2 * half_mm, 2 * half_mm)
    assert rule.is_finer(half_mm - 0.02, half_mm - 0.02)
    assert not rule.is_finer(half_mm - 0.02, float(np.float32(half_mm)))


def test_steps_of_no_scanner_are_not_averaged() -> None:
    assert slabs(steps(90, 0.08)).finer.all()
    assert not slabs(steps(90, 0.07)).finer.any()


def test_the_spacing_of_a_rule_decides_and_its_thickness_is_averaged() -> None:
    found = slabs(steps(21, 2.0), SlabRule(3.0, 5.0))
    assert around(found, 10) == {9: 0.1667, 10: 0.6667, 11: 0.1667}
    assert not slabs(steps(21, 2.0), SlabRule(5.0, 3.0)).finer.any()


def test_a_slice_whose_place_is_not_known_is_alone_in_its_slab() -> None:
    found = slabs([0, 1, NAN, 2, 3])
    assert found.finer.all()
    assert around(found, 2) == {2: 1.0}
    assert around(found, 0) == {0: 0.3333, 1: 0.3333, 3: 0.3333}


def test_slabs_of_some_series_are_numbered_anew_and_travel_as_bytes() -> None:
    places = [*steps(11, 1.0), *steps(11, 5.0), *steps(11, 1.0)]
    found = slabs(places, series=np.repeat([3, 8, 9], 11))
    rows = np.array([*range(32, 21, -1), *range(11, 22)])
    part = found.of(rows)
    assert part.finer.tolist() == [True] * 11 + [False] * 11
    assert around(part, 5) == dict.fromkeys([3, 4, 5, 6, 7], 0.2)
    assert {rows[member] for member in around(part, 1)} == {*around(found, 31)}
    again = Slabs.from_bytes(part.to_bytes(), len(rows))
    assert [around(again, row) for row in range(22)] == [around(part, row) for row in range(22)]
    assert (again.rule, again.finer.tolist()) == (FIVE, part.finer.tolist())
    nothing = found.of(np.empty(0, np.int64))
    assert len(Slabs.from_bytes(nothing.to_bytes(), 0).finer) == 0


def tilted(row: int, **values: Any) -> dict[str, Any]:
    """Fields of eleven slices of which one is another."""
    held = geometry(steps(11, 1.0))
    changed = {}
    for name, value in values.items():
        changed[name] = getattr(held, name).copy()
        changed[name][row] = value
    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": (256, 512)},
        {"pixel_mm": 0.6},
        {"pixel_mm": NAN},
        {"normals": (0, np.sin(0.05), np.cos(0.05))},
        {"normals": (NAN, NAN, NAN)},
        {"corners": (-100.0, -100.0, -35.0)},
    ],
    ids=["matrix", "spacing", "spacing unknown", "tilt", "direction unknown", "slid"],
)
def test_a_slice_unlike_the_others_is_in_no_slab_but_its_own(changes: dict[str, Any]) -> None:
    found = slabs(steps(11, 1.0), **tilted(5, **changes))
    assert around(found, 5) == {5: 1.0}
    assert set(around(found, 6)) == {4, 6, 7, 8}
    assert found.finer.all()


def test_slices_of_a_tilted_gantry_slide_with_their_places() -> None:
    """Table steps of 1 mm along z, planes turned by 20 degrees."""
    turn = np.radians(20)
    corners = np.stack([np.zeros(11), np.zeros(11), np.arange(11.0)], 1)
    normals = np.tile([0, -np.sin(turn), np.cos(turn)], (11, 1))
    found = slabs(list(np.arange(11) * np.cos(turn)), corners=corners, normals=normals)
    assert len(around(found, 5)) == 7  # of 0.94 mm: five whole ones and shares of two


def series(*images: NDArray[Any], **tags: Any) -> list[CTSlice]:
    return [read_slice(make(hu=image, SOPInstanceUID=f"ID_{row}", **tags)) for row, image in enumerate(images)]


def averaged(slices: list[CTSlice], found: Slabs) -> list[CTSlice]:
    reader = SlabReader(slices.__getitem__)
    return [reader.slab(row, found.around(row)) for row in range(len(slices))]


def test_slabs_are_the_means_in_hu_that_numpy_makes_and_windowed_after() -> None:
    rng = np.random.default_rng(1)
    images = [head(seed=row) + rng.integers(0, 200) for row in range(11)]
    slices = series(*images)
    windows = parse_windows("brain,subdural,bone")
    for row, ct in enumerate(averaged(slices, slabs(steps(11, 1.0)))):
        inside = np.mean(images[max(row - 2, 0) : row + 3], 0)
        np.testing.assert_allclose(ct.stored, inside, atol=1e-9)
        assert "slab" in ct.header.flags
        assert ct.header.slice_id == f"ID_{row}"
        # Values of windows before the mean over 4x4 pixels, as `window_slice` has them.
        for window, channel in zip(windows, window_slice(ct, windows, 16), strict=True):
            low = window.center_hu - window.width_hu / 2
            clipped = np.clip((inside - low) / window.width_hu, 0, 1).reshape(16, 4, 16, 4).mean((1, 3))
            assert np.abs(channel - 255 * clipped).max() <= 0.5 + 1e-6


def test_constants_stay_and_a_ramp_stays_a_ramp() -> None:
    noise = head(seed=3)
    assert np.ptp([ct.stored for ct in averaged(series(*[noise] * 9), slabs(steps(9, 0.625)))], 0).max() < 1e-9
    ramp = averaged(series(*[noise + 10 * row for row in range(24)]), slabs(steps(24, 0.625)))
    for row in range(4, 20):  # slabs at the ends are of one side
        np.testing.assert_allclose(ramp[row].stored, noise + 10.0 * row, atol=1e-9)


def test_words_of_other_rescales_and_types_are_averaged_in_hu() -> None:
    one = read_slice(make(hu=head(seed=1)))
    other = read_slice(make(hu=head(seed=2) // 2 + 512, signed=False, RescaleSlope=2, RescaleIntercept=-3072))
    mean = mean_slice(one, [(one, 0.5), (other, 0.5)])
    np.testing.assert_allclose(mean.hu(), (one.hu() + other.hu()) / 2, atol=1e-3)
    assert (mean.slope, mean.intercept) == (1, 0)
    assert not mean.stored.flags.writeable


def test_only_the_slices_of_one_slab_are_held_and_each_is_read_once() -> None:
    slices, found = series(*[head(seed=row) for row in range(30)]), slabs(steps(30, 1.0))
    read: list[int] = []

    def reading(row: int) -> CTSlice:
        read.append(row)
        return slices[row]

    reader = SlabReader(reading)
    most = 0
    for row in range(30):
        reader.slab(row, found.around(row))
        most = max(most, len(reader._held))
    assert sorted(read) == [*range(30)]
    assert most == 5


def test_runs_beside_each_other_hold_the_slices_of_as_many_slabs() -> None:
    slices, found = series(*[head(seed=row) for row in range(30)]), slabs(steps(30, 1.0))
    read: list[int] = []

    def reading(row: int) -> CTSlice:
        read.append(row)
        return slices[row]

    reader = SlabReader(reading, runs=3)
    for row in range(2, 10):
        for one in (row, row + 8, row + 16):
            reader.slab(one, found.around(one))
            assert len(reader._held) <= 15
    assert len(read) == 3 * 12  # what a run needs, once


@pytest.mark.parametrize("error", [Rejection("no_pixel", "PixelData is absent or empty"), MemoryError("no room")])
def test_a_slice_that_cannot_be_read_is_refused_itself_and_left_out_of_other_slabs(error: Exception) -> None:
    images = [head(seed=row) for row in range(5)]
    slices, found = series(*images), slabs(steps(5, 1.0))

    def reading(row: int) -> CTSlice:
        if row == 2:
            raise error
        return slices[row]

    reader = SlabReader(reading)
    np.testing.assert_allclose(reader.slab(1, found.around(1)).stored, np.mean([*images[:2], images[3]], 0), atol=1e-9)
    with pytest.raises(type(error), match="no"):
        reader.slab(2, found.around(2))


def test_a_slice_that_is_alone_or_of_another_size_than_its_header_said_stays_as_it_is() -> None:
    slices = [*series(head(seed=0)), *series(head(32, 32, seed=1))]
    reader = SlabReader(slices.__getitem__)
    for members in ([(0, 1.0)], [(0, 0.5), (1, 0.5)]):
        ct = reader.slab(0, members)
        assert ct.stored is slices[0].stored
        assert {"no_slab"} == {*ct.header.flags} - {*slices[0].header.flags}


def test_slabs_that_are_not_square_are_padded_with_black() -> None:
    (ct,) = series(head(48, 64))
    slab = mean_slice(ct, [(ct, 0.5), (replace(ct), 0.5)])
    windows = parse_windows("brain,bone")
    assert np.array_equal(window_slice(slab, windows, 16), window_slice(ct, windows, 16))
