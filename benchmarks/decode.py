"""One core, file cache warm: 512x512 files to three windows of 128x128, against the usual code and reading only.

Prints ratios of one run: the usual pydicom + float NumPy + OpenCV code over ours, and ours over reading the file. The
rounds of all contenders alternate and the median of the rounds counts, in CPU time (the cache is warm: nothing waits
for a disk), so that a busy machine slows all of them alike. Other sizes follow on fewer files, most of them at ratios
that are no whole numbers.

    python benchmarks/decode.py [--files 64] [--rounds 7] [--sizes 512 384 300 256 224 100]
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))

from ich_ray.ct.dicom import read_slice
from ich_ray.ct.elements import parse
from ich_ray.ct.source import read_file
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows, window_slice
from ich_ray.storage import locate
from tests.ct.files import head, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SIZE = 128
WINDOWS = parse_windows(DEFAULT_WINDOWS)


def usual(path: Path, size: int = SIZE) -> NDArray[np.uint8]:
    """What most published pipelines do: everything in float, the header by pydicom, the resizing by OpenCV."""
    dataset = pydicom.dcmread(path)
    hu = dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    channels = []
    for window in WINDOWS:
        low = window.center_hu - window.width_hu / 2
        scaled = np.clip((hu - low) / window.width_hu, 0, 1) * 255
        channels.append(cv2.resize(scaled, (size, size), interpolation=cv2.INTER_AREA))
    return np.floor(np.stack(channels) + 0.5).astype(np.uint8)


def ours(path: Path, size: int = SIZE) -> NDArray[np.uint8]:
    return window_slice(read_slice(path), WINDOWS, size)


def milliseconds(contenders: dict[str, tuple[Callable[[Any], object], list[Any]]], rounds: int) -> dict[str, float]:
    """Median over rounds of the mean time per file."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (function, inputs) in contenders.items():
            started = time.process_time()
            for one in inputs:
                function(one)
            times[name].append((time.process_time() - started) / len(inputs) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def other_sizes(paths: list[Path], sizes: list[int]) -> list[str]:
    lines = []
    for size in sizes:
        differences = np.stack([ours(path, size).astype(int) - usual(path, size) for path in paths[:4]])
        contenders = {"usual": partial(usual, size=size), "ours": partial(ours, size=size)}
        times = milliseconds({name: (contender, paths) for name, contender in contenders.items()}, 3)
        lines.append(
            f"{size:6} {times['usual']:9.2f} {times['ours']:7.2f} ms {times['usual'] / times['ours']:12.1f}   "
            f"{abs(differences).max()} and {abs(differences).mean():.4f} grey levels"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 384, 300, 256, 224, 100])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number:04d}.dcm" for number in range(options.files)]
        for number, path in enumerate(paths):
            hu = head(512, 512, seed=number)
            path.write_bytes(make(hu, signed=bool(number % 2), SOPInstanceUID=f"ID_{number}"))
        differences = np.stack([ours(path).astype(int) - usual(path) for path in paths[:8]])
        data = [memoryview(path.read_bytes()) for path in paths]
        slices = [read_slice(view) for view in data]
        times = milliseconds(
            {
                "read only": (lambda path: read_file(locate(path)), paths),
                "ours": (ours, paths),
                "ours: parse": (parse, data),
                "ours: parse, check, view": (read_slice, data),
                "ours: window": (lambda ct: window_slice(ct, WINDOWS, SIZE), slices),
                "pydicom dcmread": (lambda view: pydicom.dcmread(io.BytesIO(view)), data),
                "usual": (usual, paths),
            },
            options.rounds,
        )
        sizes = other_sizes(paths[:12], options.sizes)
    for name, value in times.items():
        print(f"{name:26} {value:7.3f} ms a file")
    print(f"largest difference {abs(differences).max()} grey level, mean {abs(differences).mean():.4f}")
    print(f"usual / ours      {times['usual'] / times['ours']:5.1f}   (to reach: 12)")
    print(f"ours / read only  {times['ours'] / times['read only']:5.1f}   (to stay under: 6)")
    print("512 to     usual    ours      usual / ours   largest and mean difference", *sizes, sep="\n")


if __name__ == "__main__":
    main()
