"""`prepare` through Ray Data on this machine's cores, against one core of the same work without Ray.

Prints, of one run: the rate of one process on whole chunks; of as many plain processes as there are cores, which is
what the machine can give; and of `prepare` from its first finished chunk to its last, with the start-up apart. Then the
peak memory of `prepare` and its workers (proportional set size, the page cache not counted) on few and on many files.

    python benchmarks/preparing.py [--files 6000] [--memory 2000 20000]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from ich_ray import progress
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.prepare.decode_chunk import ChunkJob, run_chunk
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.data.prepare.run import prepare
from ich_ray.storage import locate
from ich_ray.vocabulary import LABELS
from tests.ct.files import head, make

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 256
SLICES_A_PATIENT = 40


def write_cohort(folder: Path, count: int, edge: int = 512) -> tuple[Path, Path]:
    """`count` slices that differ in every pixel, and the long table of their labels."""
    images = folder / f"images{count}"
    images.mkdir()
    words = (head(edge, edge).astype(np.int32) + 1024).astype("<i2")
    data = make(head(edge, edge), SOPInstanceUID="ID_00000000", PatientID="P_00000000", StudyInstanceUID="ID_S0000000")
    front = data[: len(data) - words.nbytes]
    lines = ["ID,Label"]
    for number in range(count):
        name, patient = f"{number:08d}", f"{number // SLICES_A_PATIENT:08d}"
        header = front.replace(b"ID_00000000", b"ID_" + name.encode()).replace(b"P_00000000", b"P_" + patient.encode())
        header = header.replace(b"ID_S0000000", b"ID_S" + patient[1:].encode())
        (images / f"ID_{name}.dcm").write_bytes(header + np.roll(words, 7 * number + 1).tobytes())
        positive = int(number // SLICES_A_PATIENT % 3 == 0)
        lines += [f"ID_{name}_{label},{positive if label in ('any', 'subdural') else 0}" for label in LABELS]
    labels = folder / f"labels{count}.csv"
    labels.write_text("\n".join(lines) + "\n")
    return images, labels


def plain(images: Path, out: Path, start: int, chunks: int) -> float:
    """Slices per second of one process on whole chunks, after one that is not counted."""
    job = ChunkJob(locate(images), locate(out), parse_windows(DEFAULT_WINDOWS), 128, Pseudonyms.load(), "")
    names = [f"ID_{number:08d}.dcm" for number in range(start * CHUNK, (start + chunks) * CHUNK)]
    run_chunk(job, 99_000 + start, names[:CHUNK])
    started = time.perf_counter()
    for number in range(chunks):
        run_chunk(job, start + number, names[number * CHUNK : (number + 1) * CHUNK])
    return chunks * CHUNK / (time.perf_counter() - started)


@dataclass
class Watched:
    """What a run of `prepare` showed: seconds since its start with the slices done, and memory."""

    started: float = field(default_factory=time.perf_counter)
    done: list[tuple[float, int]] = field(default_factory=list)
    peak_bytes: int = 0

    @contextlib.contextmanager
    def bar(self, _what: str, _total: int, _unit: str) -> Iterator[progress.Advance]:
        def advance(done: int, note: str = "") -> None:  # noqa: ARG001
            self.done.append((time.perf_counter() - self.started, done))

        yield advance

    def sample(self, over: threading.Event) -> None:
        """Note the most memory of this process and its children until `over`."""
        while not over.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, memory_bytes(psutil.Process()))

    def rate(self) -> float:
        (first, before), (last, after) = self.done[0], self.done[-1]
        return (after - before) / (last - first)


def memory_bytes(root: psutil.Process) -> int:
    total = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error, AttributeError):
            total += process.memory_full_info().pss
    return total


def watched_prepare(images: Path, labels: Path, out: Path, memory: bool = False) -> Watched:
    watched, over = Watched(), threading.Event()
    sampler = threading.Thread(target=watched.sample, args=(over,), daemon=True)
    if memory:
        sampler.start()
    whole = progress.bar
    progress.bar = watched.bar  # type: ignore[assignment]
    try:
        prepare(images, labels, out)
    finally:
        progress.bar = whole
        over.set()
    return watched


def speed(folder: Path, count: int) -> None:
    images, labels = write_cohort(folder, count)
    cores = len(os.sched_getaffinity(0))
    chunks = count // CHUNK // cores
    for warm in images.iterdir():
        warm.read_bytes()
    alone = statistics.median(plain(images, folder / f"plain{n}", 0, chunks) for n in range(3))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        at_once = pool.starmap(plain, [(images, folder / f"of{n}", n * chunks, chunks) for n in range(cores)])
    started = time.perf_counter()
    watched = watched_prepare(images, labels, folder / "dataset")
    whole = time.perf_counter() - started
    print(f"one process                {alone:8,.0f} slices/s")
    print(f"{cores} plain processes         {sum(at_once):8,.0f} slices/s")
    print(f"prepare, once started      {watched.rate():8,.0f} slices/s")
    first, last = watched.done[0], watched.done[-1]
    print(f"prepare: first chunk after {first[0]:.1f} s, last after {last[0]:.1f} s, dataset whole after {whole:.1f} s")
    print(f"prepare / {cores} x one process  {watched.rate() / alone / cores:6.2f}   (to reach: 0.75)")
    print(f"prepare / plain processes  {watched.rate() / sum(at_once):6.2f}")


def memory(folder: Path, counts: list[int]) -> None:
    peaks = []
    for count in counts:
        peaks.append(_peak(folder, count))
        print(f"peak memory on {count:6,} files  {peaks[-1] / 2**20:6,.0f} MiB")
    print(f"most / fewest files        {peaks[-1] / peaks[0]:6.2f}   (to stay near: 1)")


def _peak(folder: Path, count: int) -> int:
    images, labels = write_cohort(folder, count, edge=256)
    return watched_prepare(images, labels, folder / f"dataset{count}", memory=True).peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--memory", type=int, nargs="*", default=[2000, 20_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ICH_RAY_KEY_FILE"] = f"{folder}/key"
        speed(Path(folder), options.files)
        if options.memory:
            memory(Path(folder), options.memory)


if __name__ == "__main__":
    main()
