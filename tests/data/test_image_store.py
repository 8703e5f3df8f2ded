"""Batches where they are wanted: the same from wherever the images lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ich_ray.data import image_store as module
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.image_store import fits_device, place
from tests.prepared import every_image, make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_dataset(tmp_path / "data", patients=12, size=8, blocks=5)


@pytest.mark.parametrize("where", ["auto", "host", "device"])
def test_batches_are_the_same_wherever_they_lie(dataset: PreparedDataset, where: str) -> None:
    train = dataset.role("train")
    placed = place(dataset, train.rows, torch.device("cpu"), where)  # type: ignore[arg-type]
    assert placed.where == ("host" if where == "auto" else where)
    rows = train.rows[[3, 0, 7, 7]]
    assert np.array_equal(placed.take(rows).numpy(), every_image(dataset)[rows])


def test_a_device_holds_each_row_once(dataset: PreparedDataset) -> None:
    placed = place(dataset, np.array([[7, 3], [3, 9]]), torch.device("cpu"), "device")
    assert placed.held_bytes == 3 * 3 * 8 * 8
    assert np.array_equal(placed.take(np.array([9, 3, 7, 9])).numpy(), every_image(dataset)[[9, 3, 7, 9]])
    assert place(dataset, np.array([3]), torch.device("cpu"), "host").held_bytes == 0


GIB = 2**30


@pytest.mark.parametrize(
    ("needed", "free", "total", "taken", "trials", "fits"),
    [
        (40, 80, 80, 0, 1, True),  # half of all that is free
        (41, 80, 80, 0, 1, False),
        (30, 60, 80, 0, 1, True),
        (31, 60, 80, 0, 1, False),  # 20 are used by whoever it is
        (10, 80, 80, 0, 4, True),  # four trials on 80: half of 20 each
        (11, 80, 80, 0, 4, False),  # though it is the first and all is free
        (10, 25, 80, 0, 4, True),  # the last of them: three use 55
        (10, 19, 80, 0, 4, False),
        (2, 12, 80, 8, 4, True),  # validation after 8 of training images
        (3, 12, 80, 8, 4, False),
    ],
)
def test_images_stay_on_the_device_within_the_part_of_a_trial(
    needed: int, free: int, total: int, taken: int, trials: int, fits: bool
) -> None:
    asked = fits_device(needed * GIB, free * GIB, total * GIB, taken_bytes=taken * GIB, trials=trials)
    assert asked is fits


def test_a_device_that_filled_up_meanwhile_leaves_images_on_the_host(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = dataset.role("train").rows
    needed = len(rows) * 3 * 8 * 8
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: asked.append(1) or (needed * 2,) * 2)
    monkeypatch.setattr(module, "_DeviceImages", full)
    monkeypatch.setattr(module, "_StagedImages", lambda *_: "staged")
    assert place(dataset, rows, torch.device("cuda")) == "staged"
    assert asked
    with pytest.raises(torch.OutOfMemoryError):
        place(dataset, rows, torch.device("cuda"), "device")
    monkeypatch.setattr(module, "_DeviceImages", lambda *_: "device")
    assert place(dataset, rows, torch.device("cuda")) == "device"
    assert place(dataset, rows, torch.device("cuda"), trials=2) == "staged"
    assert place(dataset, rows, torch.device("cuda"), taken_bytes=1) == "staged"


@pytest.mark.gpu
def test_staged_batches_on_an_accelerator(dataset: PreparedDataset) -> None:
    device, train = torch.device("cuda"), dataset.role("train")
    assert place(dataset, train.rows, device).where == "device"
    assert place(dataset, train.rows, device, trials=10**9).where == "host"
    rng = np.random.default_rng(0)
    for where in ("host", "device"):
        placed = place(dataset, train.rows, device, where)  # type: ignore[arg-type]
        orders = [rng.choice(train.rows, rng.integers(1, 40)) for _ in range(50)]
        taken = [placed.take(order) for order in orders]  # more at a time than there are buffers
        for order, images in zip(orders, taken, strict=True):
            assert images.is_cuda
            assert np.array_equal(images.cpu().numpy(), every_image(dataset)[order])
