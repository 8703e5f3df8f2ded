"""A dataset three times as large as the memory that is left for it: what shuffled batches and a training then reach.

A memory limit stands in for a machine that is too small: one process measures, in a child of this process's own memory
cgroup, where the file cache counts as well. The limit is what the process holds without images, and a third of the
dataset; it is lifted where all images shall fit. Needs root and a memory controller that may be divided (cgroup v1; v2
only where its parent has no process). Files leave the cache before; of each contestant a first epoch is not counted.

Printed: gathering as images per second, its ratio to the same where all fits, round by round, what comes from the disk,
and the same beside an accelerator that is busy with each batch for a while (a clock stands in for it: three batches may
be under way, as in `data.image_store`); then the training loop itself on one thread of a CPU. Memory is that of the
process without file pages, before and after, and all that the cgroup holds. `none` maps files as it is done by default
and asks for nothing; `0` asks for a batch when it is gathered. The disk's own rates are printed as a floor, and what
codecs make of phantom slices, which is what compression could save.

    python benchmarks/larger_than_memory.py [--gb 1.5] [--size 256] [--times 3] [--busy 1500] [--rounds 3] [--folder .]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contest import machine, ratios, spread, table
from ich_ray.data import read_ahead
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.training.network_inputs import place_inputs
from ich_ray.training.stream import Lookahead, Stream
from tests.prepared import SLICES_A_PATIENT, make_dataset

BATCH, STAGES = 64, 3
# Images asked for before they are gathered; `none`: mapped as files are by default, nothing is ever asked for.
NONE = "none"
AHEAD = (NONE, 0, read_ahead.IMAGES_AHEAD)
MOUNT = Path("/sys/fs/cgroup")


class Cgroup:
    """A child of this process's memory cgroup, for another process to live in."""

    def __init__(self) -> None:
        rows = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
        own = {controllers: path.lstrip("/") for _, controllers, path in rows}
        self._first = "memory" in own  # version 1
        above = MOUNT / "memory" / own["memory"] if self._first else MOUNT / own[""]
        self.folder = above / f"larger_than_memory_{os.getpid()}"

    def limit(self, size: int | None) -> None:
        name, none = ("memory.limit_in_bytes", "-1") if self._first else ("memory.max", "max")
        (self.folder / name).write_text(none if size is None else str(size))

    def enter(self) -> None:
        """Move this process there; what it holds already stays counted where it was."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def held(self) -> int:
        return int((self.folder / ("memory.usage_in_bytes" if self._first else "memory.current")).read_text())


class Measured:
    """The process that is measured: gathers and trains, with and without the limit."""

    advice = staticmethod(read_ahead._madvise)

    def __init__(self, folder: Path, cgroup: Cgroup, options: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.folder, self.cgroup = folder, cgroup
        self.open(256)
        self.count, self.busy_s = len(self.slices) // BATCH * BATCH, BATCH / options.busy
        self.train(2 * BATCH)
        self.size = len(self.slices) * math.prod(self.dataset.image_shape)
        self.own = status("RssAnon")
        self.third = (self.own << 20) + int(self.size / options.times)

    def open(self, ahead: int | str) -> None:
        """Map anew, as one contestant does."""
        read_ahead._madvise = (lambda: None) if ahead == NONE else self.advice
        self.dataset = PreparedDataset.open(self.folder)
        self.slices = SliceSet(self.dataset, np.arange(len(self.dataset)))

    def epoch(self, ahead: int, busy_s: float, number: int) -> None:
        """Shuffled images as the training loop gathers them, beside a device that is busy for a while with each."""
        inputs = place_inputs(Hyperparameters(), self.slices, torch.device("cpu"), "host")
        of, first = len(self.slices), number * self.count
        stream, lookahead = Stream(of, 0), Lookahead(of, 0, first + self.count)
        until: deque[float] = deque([0.0] * STAGES, STAGES)
        for place in range(first, first + self.count, BATCH):
            if ahead:
                inputs.will_take(lookahead.coming(place, place + BATCH + ahead))
            time.sleep(max(0.0, until[0] - time.perf_counter()))  # its buffer is free
            inputs.take(stream.slices(place, BATCH))
            until.append(max(until[-1], time.perf_counter()) + busy_s)
        time.sleep(max(0.0, until[-1] - time.perf_counter()))

    def train(self, images: int) -> float:
        """Images per second of the loop, of its second report."""
        parameters = Hyperparameters(filters=4, blocks=4, dense=8, batch_size=BATCH)
        steps = train(parameters, self.slices, None, budget=TrainingBudget(2 * images, images), seed=0)
        return [step.images_per_s for step in steps][-1]

    def rate(self, ahead: int | str, fits: bool, busy_s: float = 0.0) -> dict[str, Any]:
        self.cgroup.limit(None if fits else self.third)
        self.open(ahead)
        ahead = ahead if isinstance(ahead, int) else 0
        self.epoch(ahead, busy_s, 0)
        before, read, started = status("RssAnon"), from_disk(), time.perf_counter()
        self.epoch(ahead, busy_s, 1)
        passed = time.perf_counter() - started
        return {"rate": self.count / passed, "disk": (from_disk() - read) / passed / 1e6, **self._memory(before)}

    def training(self, ahead: int | str, fits: bool) -> dict[str, Any]:
        self.open(ahead)
        self.cgroup.limit(None if fits else self.third)
        before = status("RssAnon")
        return {"rate": self.train(self.count // 4), **self._memory(before)}

    def _memory(self, before: int) -> dict[str, Any]:
        return {"own": f"{before} to {status('RssAnon')}", "held": self.cgroup.held >> 20}

    def all(self, rounds: int) -> None:
        """Everything, in turns, told as it comes."""
        of = f"{len(self.slices):,} images of {self.dataset.image_shape[1]} pixels a side, {self.size / 1e9:.2f} GB"
        print(f"{of}; the limit is {self.third >> 20} MiB, {self.own} of them for the process itself", flush=True)
        rows = []
        for name, busy_s in (("gathering", 0.0), ("beside an accelerator", self.busy_s), ("training", None)):
            found: dict[str, list[dict[str, Any]]] = {}
            for _ in range(rounds):
                for ahead, fits in ((AHEAD[-1], True), *((ahead, False) for ahead in AHEAD)):
                    if busy_s is not None:
                        one = self.rate(ahead, fits, busy_s)
                    elif fits or ahead in {NONE, AHEAD[-1]}:
                        one = self.training(ahead, fits)
                    else:
                        continue
                    found.setdefault("fits" if fits else str(ahead), []).append(one)
                    print(name, ahead, fits, one, file=sys.stderr, flush=True)
            rows += [_row(name, ahead, at, found["fits"]) for ahead, at in found.items()]
        head = ["what", "images ahead", "images/s", "of what fits", "MB/s from disk", "own memory, MiB", "cgroup, MiB"]
        print(table(head, rows))


def _row(name: str, ahead: str, found: list[dict[str, Any]], fitting: list[dict[str, Any]]) -> list[str]:
    rates, free = ([one["rate"] for one in several] for several in (found, fitting))
    disk = spread([one["disk"] for one in found], 0) if "disk" in found[0] else ""
    shares = "" if found is fitting else spread(ratios(rates, free), 2)
    return [name, ahead, spread(rates, 0), shares, disk, found[-1]["own"], f"{found[-1]['held']:,}"]


def status(key: str) -> int:
    """MiB of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) // 1024


def from_disk() -> int:
    """Bytes that this process has had read."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])


def dropped(folder: Path) -> None:
    """Take the blocks of a dataset out of the file cache."""
    for path in folder.glob("blocks/*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk(dataset: PreparedDataset) -> str:
    """MB/s of the disk itself: files in a row, and one image after the other in shuffled order."""
    folder, of_image = Path(str(dataset.files.root)), math.prod(dataset.image_shape)
    paths = sorted(folder.glob("blocks/*"))
    dropped(folder)
    started = time.perf_counter()
    in_a_row = sum(len(path.read_bytes()) for path in paths) / (time.perf_counter() - started)
    dropped(folder)
    each = len(dataset) // len(paths)
    places = np.random.default_rng(0).permutation(np.indices((len(paths), each)).reshape(2, -1).T)[:2000].tolist()
    files = [os.open(path, os.O_RDONLY) for path in paths]
    started = time.perf_counter()
    shuffled = sum(len(os.pread(files[file], of_image, place * of_image)) for file, place in places)
    shuffled_s = time.perf_counter() - started
    for file in files:
        os.close(file)
    return (
        f"the disk: {in_a_row / 1e6:,.0f} MB/s of files in a row, {shuffled / shuffled_s / 1e6:,.0f} MB/s of single "
        f"images of {of_image / 1000:,.0f} kB, one after the other"
    )


def codecs(folder: Path, size: int) -> str:
    """What compressing each image would save, and at what rate one core undoes it."""
    from benchmarks.decode import ours
    from ich_ray.ct.phantom import write_phantom

    files = sorted(Path(str(write_phantom(folder / "dicom", 6, seed=0).images)).iterdir())
    images = [ours(path, size).tobytes() for path in files]
    told = []
    for name in ("lz4", "zstd"):
        codec = pa.Codec(name)
        packed = [codec.compress(image) for image in images]
        started = time.process_time()
        for image, data in zip(images, packed, strict=True):
            codec.decompress(data, len(image))
        passed = time.process_time() - started
        whole = sum(map(len, images))
        told.append(f"{name} {whole / sum(map(len, packed)):.2f} times, undone at {whole / passed / 1e6:,.0f} MB/s")
    return f"phantom slices of {size} pixels, compressed one by one: {'; '.join(told)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.5, help="of images")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--times", type=float, default=3.0, help="as large as the memory that is left for it")
    parser.add_argument("--busy", type=float, default=1500, help="images a second that the accelerator takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk that is meant")
    parser.add_argument("--measured", nargs=2, help=argparse.SUPPRESS)  # by the process that this one starts
    options = parser.parse_args()
    if options.measured:
        cgroup = Cgroup()
        cgroup.folder = Path(options.measured[1])
        Measured(Path(options.measured[0]), cgroup, options).all(options.rounds)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder, cgroup = Path(temporary), Cgroup()
        patients = round(options.gb * 1e9 / (3 * options.size**2) / SLICES_A_PATIENT)
        tile = np.random.default_rng(0).integers(0, 256, (1, 3, options.size, options.size), np.uint8)
        images = np.broadcast_to(tile, (patients * SLICES_A_PATIENT, *tile.shape[1:]))
        dataset = make_dataset(folder / "data", patients, options.size, blocks=64, images=images)
        print(codecs(folder, options.size), disk(dataset), sep="\n", flush=True)
        dropped(folder / "data")
        cgroup.folder.mkdir()
        try:
            again = [sys.executable, *sys.argv, "--measured", str(folder / "data"), str(cgroup.folder)]
            subprocess.run(again, check=True, preexec_fn=cgroup.enter)
        finally:
            cgroup.folder.rmdir()
    print(machine())


if __name__ == "__main__":
    main()
