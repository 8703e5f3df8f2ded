"""What is asked of the kernel before it is read."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_ray.data import read_ahead as module
from ich_ray.data.feature_store import FeatureBatches, FeatureFiles, Features
from ich_ray.data.image_store import place
from ich_ray.data.read_ahead import read_ahead
from tests.prepared import every_image, make_dataset

PAGE = mmap.PAGESIZE


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First and last address of each request."""
    found: list[tuple[int, int]] = []

    def advise(address: int, size: int, advice: int) -> int:
        assert advice == mmap.MADV_WILLNEED
        found.append((address, address + size))
        return 0

    monkeypatch.setattr(module, "_madvise", lambda: advise)
    return found


def test_a_request_begins_with_the_page_of_its_first_byte(asked: list[tuple[int, int]]) -> None:
    read_ahead([8 * PAGE, 9 * PAGE + 1, 12 * PAGE - 1], [PAGE, 10, 2])
    assert asked == [(8 * PAGE, 9 * PAGE), (9 * PAGE, 9 * PAGE + 11), (11 * PAGE, 12 * PAGE + 1)]


def test_a_system_that_takes_no_advice_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_madvise", lambda: None)
    read_ahead([1], [1])


def test_the_system_takes_advice_on_mapped_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advise, answers = module._madvise(), []
    assert advise is not None
    monkeypatch.setattr(module, "_madvise", lambda: lambda *asked: answers.append(advise(*asked)))
    dataset = make_dataset(tmp_path / "data", patients=12, blocks=3)
    dataset.read_ahead(np.arange(len(dataset)))
    assert answers == [0] * 48
    assert np.array_equal(dataset.gather(np.arange(48)), every_image(dataset))


@pytest.mark.parametrize(("channels", "bytes_each"), [(None, [3, 3]), ((1, 3), [1, 3])])
def test_of_images_just_what_is_gathered_is_asked_for(
    tmp_path: Path, asked: list[tuple[int, int]], channels: tuple[int, int] | None, bytes_each: list[int]
) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12, size=64, blocks=3)  # a channel is a page
    placed = place(dataset, dataset.role("train").rows, torch.device("cpu"), "host", channels=channels)
    rows = np.array([[40, 3], [3, 17]])
    placed.will_take(rows)
    assert len(asked) == 4
    assert np.array_equal(placed.take(rows).flatten(), np.concatenate([*_read(dataset, rows, bytes_each)]))
    for (first, last), pages in zip(asked, bytes_each * 2, strict=True):
        assert pages * PAGE <= last - first < (pages + 1) * PAGE
    asked.clear()
    place(dataset, np.unique(rows), torch.device("cpu"), "device").will_take(rows)
    assert asked == []


def _read(dataset, rows, channels):  # type: ignore[no-untyped-def]
    images = every_image(dataset)
    return [images[row, :count].ravel() for pair in rows for row, count in zip(pair, channels, strict=True)]


def test_of_features_just_what_is_gathered_is_asked_for(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    dataset = make_dataset(tmp_path / "data", patients=160)
    files = FeatureFiles.of(dataset, "ab" * 12)
    features = np.random.default_rng(0).random((len(files.rows), 4 * PAGE // 4), np.float32)
    for number in range(files.count):
        files.write(number, features[256 * number : 256 * number + 256])
    files.finish(dataset, features.shape[1:])
    opened = Features.open(dataset, "ab" * 12)
    assert opened is not None
    batches, wanted = FeatureBatches(opened, torch.device("cpu")), np.array([300, 2, 257])
    batches.will_take(files.rows[wanted])
    assert [(last - first) // PAGE for first, last in asked] == [4, 4, 4]
    assert asked[2][0] != asked[0][0]
    assert np.array_equal(batches.take(files.rows[wanted]).numpy(), features[wanted])
