"""A series read slice by slice: which images lie beside each, how often each is read, how many are held."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_ray.bundle.input_survey import Input
from ich_ray.bundle.series_reading import Series, SeriesImages, SliceReader, walk
from ich_ray.ct import slice_file
from ich_ray.data.neighbors import neighbor_rows
from ich_ray.errors import Rejection

NAN = float("nan")
UNKNOWN, MISSING = ("neighbors_unknown",), ("neighbor_missing",)


class Images:
    """Stands for decoded slices: each is its own index, and unless it is unreadable counted while it lives."""

    def __init__(self, unreadable: Collection[int] = (), error: type[Exception] = Rejection) -> None:
        self._unreadable, self._error = unreadable, error
        self.read: Counter[int] = Counter()
        self.alive = self.most = 0

    def __call__(self, index: int) -> tuple[Any, NDArray[np.uint8]]:
        self.read[index] += 1
        if index in self._unreadable:
            raise Rejection("no_pixel", "") if self._error is Rejection else self._error
        image = np.full((1, 1, 1), index, np.uint8)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._over)
        return SimpleNamespace(), image

    def _over(self) -> None:
        self.alive -= 1


def seen(
    places_mm: list[float], images: Images | None = None, neighbors: int = 1, refused: Collection[int] = ()
) -> list[tuple[list[int] | str, tuple[str, ...]]]:
    """Of each slice the images that make up its input, or its reason; and its flags."""
    inputs = [Input(f"{index}", "not_axial" if index in refused else "") for index in range(len(places_mm))]
    found: dict[int, tuple[list[int] | str, tuple[str, ...]]] = {}
    for one in walk(Series(inputs, np.array(places_mm)), images or Images(), neighbors):
        assert one.index not in found
        found[one.index] = one.reason or [int(image[0, 0, 0]) for image in one.images], one.flags
    return [found[index] for index in range(len(places_mm))]


def test_slices_have_their_neighbors_in_whatever_order_they_are_given() -> None:
    images = Images()
    assert seen([10, 0, 20, 5, 15], images) == [
        ([3, 0, 4], ()), ([1, 1, 3], ()), ([4, 2, 2], ()), ([1, 3, 0], ()), ([0, 4, 2], ()),
    ]  # fmt: skip
    assert images.read == dict.fromkeys(range(5), 1)


def test_two_on_either_side_and_none() -> None:
    assert [row for row, _ in seen([0, 5, 10, 15], neighbors=2)] == [
        [0, 0, 0, 1, 2], [1, 0, 1, 2, 3], [0, 1, 2, 3, 2], [1, 2, 3, 3, 3],
    ]  # fmt: skip
    assert seen([0, 5, NAN], neighbors=0) == [([0], ()), ([1], ()), ([2], ())]


def test_copies_at_one_place_have_the_same_neighbors_and_only_the_first_is_one() -> None:
    images = Images()
    assert [row for row, _ in seen([0, 5, 5, 5, 10], images)] == [[0, 0, 1], [0, 1, 4], [0, 2, 4], [0, 3, 4], [1, 4, 4]]
    assert images.read == dict.fromkeys(range(5), 1)


def test_a_slice_that_knows_of_no_other_stands_in_for_its_neighbors_and_says_so() -> None:
    assert seen([0]) == [([0, 0, 0], UNKNOWN)]
    assert seen([NAN]) == [([0, 0, 0], UNKNOWN)]
    assert seen([0, NAN, 5]) == [([0, 0, 2], ()), ([1, 1, 1], UNKNOWN), ([0, 2, 2], ())]
    assert seen([7, 7]) == [([0, 0, 0], UNKNOWN), ([1, 1, 1], UNKNOWN)]


def test_beside_a_gap_a_slice_says_that_it_lacks_one_and_at_an_end_it_does_not() -> None:
    assert seen([0, 5, 10, 21, 26]) == [
        ([0, 0, 1], ()), ([0, 1, 2], ()), ([1, 2, 2], MISSING), ([3, 3, 4], MISSING), ([3, 4, 4], ()),
    ]  # fmt: skip
    assert [flags for _, flags in seen([0, 5, 10, 21, 26], neighbors=2)] == [(), MISSING, MISSING, MISSING, MISSING]


@pytest.mark.parametrize(("error", "reason"), [(Rejection, "no_pixel"), (MemoryError, "out_of_memory")])
def test_one_that_cannot_be_read_is_as_absent(error: type[Exception], reason: str) -> None:
    """10 mm are no gap in steps of 5 mm, 15 mm are one."""
    images = Images({2}, error)
    assert seen([0, 5, 10, 15, 20], images) == [
        ([0, 0, 1], ()), ([0, 1, 3], MISSING), (reason, ()), ([1, 3, 4], MISSING), ([3, 4, 4], ()),
    ]  # fmt: skip
    assert images.read == dict.fromkeys(range(5), 1), "what is needed beside others is read once, too"
    assert seen([0, 5, 10, 15, 20, 25, 30], Images({2, 3}, error)) == [
        ([0, 0, 1], ()), ([0, 1, 1], MISSING), (reason, ()), (reason, ()), ([4, 4, 5], MISSING), ([4, 5, 6], ()),
        ([5, 6, 6], ()),
    ]  # fmt: skip


def test_a_copy_takes_the_place_of_one_that_cannot_be_read() -> None:
    assert seen([0, 5, 5, 10], Images({1})) == [([0, 0, 2], ()), ("no_pixel", ()), ([0, 2, 3], ()), ([2, 3, 3], ())]


def test_the_end_of_a_series_that_cannot_be_read_is_missing() -> None:
    assert seen([0, 5, 10], Images({2})) == [([0, 0, 1], ()), ([0, 1, 1], MISSING), ("no_pixel", ())]
    assert seen([0, 5, 10], Images({0, 1, 2})) == [("no_pixel", ())] * 3


def test_what_is_refused_beforehand_is_not_read_and_belongs_to_no_series() -> None:
    images = Images()
    assert seen([0, 5, 7, 10], images, refused={2}) == [
        ([0, 0, 1], ()), ([0, 1, 3], ()), ("not_axial", ()), ([1, 3, 3], ()),
    ]  # fmt: skip
    assert images.read == {0: 1, 1: 1, 3: 1}


@pytest.mark.parametrize("neighbors", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_neighbors_are_those_of_a_dataset_of_what_can_be_read(seed: int, neighbors: int) -> None:
    """Some places twice, some unknown, some unreadable, in any order."""
    rng = np.random.default_rng(seed)
    places_mm = 5.0 * rng.permutation(np.concatenate([np.arange(60), rng.integers(0, 60, 8)]))
    places_mm[rng.integers(0, 68, 3)] = NAN
    unreadable = {*rng.integers(0, 68, 9).tolist()}
    kept = np.array([index for index in range(68) if index not in unreadable])
    ids = np.array([f"{index:02d}" for index in kept], object)
    rows = neighbor_rows(np.zeros(len(kept), np.int64), places_mm[kept], ids)[:, 2 - neighbors : 3 + neighbors]
    images = Images(unreadable)
    found = seen(places_mm.tolist(), images, neighbors)
    assert [found[index][0] for index in kept] == kept[rows].tolist()
    assert [found[index] for index in sorted(unreadable)] == [("no_pixel", ())] * len(unreadable)
    assert images.read == dict.fromkeys(range(68), 1)


@pytest.mark.parametrize(("neighbors", "most"), [(0, 1), (1, 4), (2, 6)])
def test_few_images_of_a_series_live_at_a_time(neighbors: int, most: int) -> None:
    """However long it is, and if each place has many slices, as of a perfusion."""
    for places_mm in (np.arange(200.0), np.repeat(np.arange(20.0), 10)):
        images = Images(range(0, 200, 23))
        for one in walk(Series([Input("")] * 200, places_mm), images, neighbors):
            del one
        assert images.most <= most
        assert images.alive == 0
        assert images.read == dict.fromkeys(range(200), 1)


def test_frames_of_a_file_are_read_from_one_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classic files between them do not close it."""
    opened = []

    class File:
        def __init__(self, path: str, _: bool) -> None:
            opened.append(path)
            if path == "torn":
                raise Rejection("no_pixel", "")
            self.path = path

        def read(self, frame: int) -> str:
            return f"{self.path}#{frame}"

    monkeypatch.setattr(slice_file, "SliceFile", File)
    reader = SliceReader()
    files = [Input("a", frame=2), Input("b"), Input("a", frame=1), Input("c", frame=1)]
    assert [str(reader.read(given)) for given in files] == ["a#2", "b#0", "a#1", "c#1"]
    assert opened == ["a", "b", "c"]
    for _ in range(2):
        with pytest.raises(Rejection):
            reader.read(Input("torn", frame=1))
    assert opened == ["a", "b", "c", "torn"]


def test_the_image_of_a_slice_is_what_prepare_makes_of_it(tmp_path: Path) -> None:
    from ich_ray.bundle.card import Card
    from ich_ray.ct.dicom import read_slice
    from ich_ray.ct.windowing import window_slice
    from tests.ct.files import make
    from tests.records import make_card

    (tmp_path / "a.dcm").write_bytes(make())
    card = Card.model_validate(make_card())
    images = SeriesImages(Series([Input(str(tmp_path / "a.dcm"))], np.array([NAN])), SliceReader(), card)
    header, image = images(0)
    assert header.slice_id == "ID_0001"
    assert np.array_equal(image, window_slice(read_slice(make()), card.windows, 16))
    assert images.words(0).hu().shape == (64, 64)
