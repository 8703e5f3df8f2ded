"""What is asked of the kernel before it is read."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_ray.data import read_ahead as module
from ich_ray.data.feature_store import FeatureBatches, FeatureFiles, Features
from ich_ray.data.image_store import place
from ich_ray.data.read_ahead import MappedImages, ask_for, map_at_random
from tests.prepared import every_image, make_dataset

PAGE = mmap.PAGESIZE


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First and last address of each request."""
    found: list[tuple[int, int]] = []

    def advise(address: int, size: int, advice: int) -> int:
        if advice == mmap.MADV_WILLNEED:
            found.append((address, address + size))
        return 0

    monkeypatch.setattr(module, "_madvise", lambda: advise)
    return found


def test_a_request_begins_with_the_page_of_its_first_byte(asked: list[tuple[int, int]]) -> None:
    ask_for([8 * PAGE, 9 * PAGE + 1, 12 * PAGE - 1], [PAGE, 10, 2])
    assert asked == [(8 * PAGE, 9 * PAGE), (9 * PAGE, 9 * PAGE + 11), (11 * PAGE, 12 * PAGE + 1)]


def test_a_system_that_takes_no_advice_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_madvise", lambda: None)
    ask_for([1], [1])
    map_at_random(1, 1)


def test_the_system_takes_advice_on_mapped_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advise, answers = module._madvise(), []
    assert advise is not None
    monkeypatch.setattr(module, "_madvise", lambda: lambda *asked: answers.append((asked[2], advise(*asked))))
    dataset = make_dataset(tmp_path / "data", patients=12, blocks=3)
    dataset.read_ahead(np.arange(len(dataset)))
    assert answers == [(mmap.MADV_RANDOM, 0)] * 3 + [(mmap.MADV_WILLNEED, 0)] * 48
    assert np.array_equal(dataset.gather(np.arange(48)), every_image(dataset))


class Memory:
    """Images of `size` bytes in a row, and where copies of them go."""

    def __init__(self, count: int, size: int = 16) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)
        self.addresses = [self.images.ctypes.data + size * number for number in range(count)]
        self.sizes, self.copies = [size] * count, np.zeros_like(self.images)

    def copied(self, images: MappedImages) -> bool:
        self.copies[:] = 0
        images.copy(self.addresses, self.sizes, self.copies.ctypes.data)
        return np.array_equal(self.copies, self.images)


@pytest.mark.parametrize("count", [0, 1, 8, 63, 128, 129, 500])
def test_a_copy_asks_for_each_image_once_and_before_it_is_touched(
    count: int, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, told = Memory(count), []
    monkeypatch.setattr(module, "memmove", lambda *given: told.append(len(asked)) or ctypes.memmove(*given))
    assert memory.copied(MappedImages())
    assert [last for _, last in asked] == [address + 16 for address in memory.addresses]
    # Of those to come at least as many as are asked for together are under way, or all.
    assert all(there >= min(number + 64, count) for number, there in enumerate(told))


def test_who_finds_all_images_in_memory_asks_no_more_until_one_is_missing(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, memory = [7], Memory(100)
    monkeypatch.setattr(module, "_ASKED", 150)
    monkeypatch.setattr(module, "_faults", lambda: faults[-1])
    images = MappedImages()
    counts = []
    for waited in (7, 7, 9, 9, 9, 9):
        faults.append(waited)
        asked.clear()
        images.ask_for(memory.addresses[:5], memory.sizes[:5])
        assert memory.copied(images)
        counts.append(len(asked))
    # Asked for in advance and when copied; then neither, and at once again after a page that was waited for.
    assert counts == [105, 105, 92, 105, 0, 0]


@pytest.mark.parametrize(("channels", "bytes_each"), [(None, [3, 3]), ((1, 3), [1, 3])])
def test_of_images_just_what_is_gathered_is_asked_for(
    tmp_path: Path, asked: list[tuple[int, int]], channels: tuple[int, int] | None, bytes_each: list[int]
) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12, size=64, blocks=3)  # a channel is a page
    placed = place(dataset, dataset.role("train").rows, torch.device("cpu"), "host", channels=channels)
    rows = np.array([[40, 3], [3, 17]])
    placed.will_take(rows)
    assert len(asked) == 4
    told = [*asked]
    assert np.array_equal(placed.take(rows).flatten(), np.concatenate([*_read(dataset, rows, bytes_each)]))
    assert asked == told * 2
    for (first, last), pages in zip(told, bytes_each * 2, strict=True):
        assert pages * PAGE <= last - first < (pages + 1) * PAGE
    held = place(dataset, np.unique(rows), torch.device("cpu"), "device")
    asked.clear()
    held.will_take(rows)
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
