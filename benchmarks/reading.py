"""Shuffled batches of 256 from a dataset of 100 blocks, one core, against a PyTorch DataLoader over PNG files.

Prints ratios of one run: ours over the DataLoader, over Ray Data's `iter_torch_batches` on a materialized dataset (with
--ray), and over copying as much memory in a row, which is the floor. The rounds of all contenders alternate, and the
median counts. Opening the dataset is timed as well. Other sizes follow, ours over the floor only, in batches of as many
bytes.

    python benchmarks/reading.py [--images 2560] [--size 128] [--sizes 256 384 512] [--rounds 5] [--ray]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.runtime import connected
from ich_ray.training.network_inputs import place_inputs
from tests.prepared import SLICES_A_PATIENT, make_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BATCH, BLOCKS = 256, 100
PNG_IMAGES = 1024  # the DataLoader needs a second for them


class PngFiles(Dataset[torch.Tensor]):
    """What most published pipelines read from."""

    def __init__(self, folder: Path, images: NDArray[np.uint8]) -> None:
        self.paths = [folder / f"{number:05d}.png" for number in range(len(images))]
        for path, image in zip(self.paths, images, strict=True):
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(Image.open(self.paths[index]))).permute(2, 0, 1)


def rate(images: int, batches: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    batches()
    return images / (clock() - started)


def ours(dataset: PreparedDataset, rng: np.random.Generator, batch: int = BATCH) -> Callable[[], object]:
    placed = place_inputs(Hyperparameters(), dataset.role("train"), torch.device("cpu"))
    count = len(dataset.role("train"))

    def batches() -> None:
        order = rng.permutation(count)
        for start in range(0, count, batch):
            placed.take(order[start : start + batch])

    return batches


def copying(images: NDArray[np.uint8], batch: int = BATCH) -> Callable[[], object]:
    def batches() -> None:
        for start in range(0, len(images), batch):
            np.empty((batch, *images.shape[1:]), np.uint8)[:] = images[start : start + batch]

    return batches


def of_ray(images: NDArray[np.uint8]) -> Callable[[], object]:
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_numpy(np.array_split(images, 20)).materialize()

    def batches() -> None:
        for _ in data.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=4 * BATCH):
            pass

    return batches


def measure(folder: Path, options: argparse.Namespace) -> None:
    root = make_dataset(folder / "data", options.images * 2 // SLICES_A_PATIENT, options.size, blocks=BLOCKS).files.root
    opening = []
    for _ in range(9):
        started = time.perf_counter()
        dataset = PreparedDataset.open(root)
        train = dataset.role("train")
        train.gather(np.arange(1))
        opening.append((time.perf_counter() - started) * 1e3)
    count = len(train) // BATCH * BATCH
    images = dataset.gather(train.rows[:count])
    (folder / "png").mkdir()
    loader = DataLoader(PngFiles(folder / "png", images[:PNG_IMAGES]), batch_size=BATCH, shuffle=True)
    contenders: dict[str, tuple[int, Callable[[], Any]]] = {
        "ours": (len(train), ours(dataset, np.random.default_rng(0))),
        "copying memory": (count, copying(images)),
        "DataLoader over PNG files": (len(images[:PNG_IMAGES]), lambda: list(loader)),
    }
    if options.ray:
        contenders["Ray Data, materialized"] = (count, of_ray(images))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, (number, batches) in contenders.items():
            rates[name].append(rate(number, batches))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in middle.items():
        print(f"{name:28} {value:10,.0f} images/s")
    print(f"ours / DataLoader            {middle['ours'] / middle['DataLoader over PNG files']:10.1f}   (to reach: 30)")
    if options.ray:
        print(f"ours / Ray Data              {middle['ours'] / middle['Ray Data, materialized']:10.1f}   (to reach: 5)")
    print(f"copying / ours               {middle['copying memory'] / middle['ours']:10.1f}   (the floor is 1)")
    print(f"opening {BLOCKS} blocks, first image {statistics.median(opening):6.0f} ms   (to stay under: 50)")


def other_size(folder: Path, size: int, options: argparse.Namespace) -> None:
    """Ours against copying memory, on half of the bytes and in CPU time: nothing waits, and rounds are short."""
    share = (options.size / size) ** 2
    patients = max(round(options.images / 2 * share / SLICES_A_PATIENT), 16)
    dataset = make_dataset(folder / f"data{size}", patients, size, blocks=8)
    train, batch = dataset.role("train"), max(round(BATCH * share), 1)
    count = len(train) // batch * batch
    floor = copying(dataset.gather(train.rows[:count]), batch)
    taking = ours(dataset, np.random.default_rng(0), batch)
    clock = time.process_time
    rates = [(rate(len(train), taking, clock), rate(count, floor, clock)) for _ in range(2 * options.rounds + 1)][1:]
    middle, of_floor = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"{size} x {size}, batches of {batch:2}    {middle:12,.0f} images/s, {middle * 3 * size**2 / 1e9:4.1f} GB/s; "
        f"copying / ours {of_floor / middle:4.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 384, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.ray:
            with connected(cpus=1):
                measure(Path(folder), options)
        else:
            measure(Path(folder), options)
        for size in options.sizes:
            other_size(Path(folder), size, options)


if __name__ == "__main__":
    main()
