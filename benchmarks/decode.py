"""One core, file cache warm: 512x512 files to three windows of several sizes, against the usual code and reading only.

Prints ratios of one run: the usual pydicom + float NumPy + OpenCV code over ours, and ours over reading the file. The
rounds of all contenders alternate, a ratio is the median of those of the rounds with their quartiles, and times are CPU
time (the cache is warm: nothing waits for a disk), so that a busy machine slows all of them alike. Beside it stands the
ratio that is left if windows cost nothing: reading and checking a file alone. Files are made here, noise included; with
--folder they are those of 512x512 uncompressed pixels in a folder.

The C library gives large arrays back to the system and clears them anew at every file, or keeps them, as it has come to
see them: that alone makes the usual code 3 to 5 times as slow, or not. Here it keeps them, which favors the usual code;
with --stock-memory it does what it does in a process of its own, one size at a time.

    python benchmarks/decode.py [--files 64] [--rounds 15] [--sizes 128 256 384 512] [--folder FOLDER] [--stock-memory]
"""

from __future__ import annotations

import argparse
import ctypes
import io
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))

from ich_ray.ct.dicom import read_slice
from ich_ray.ct.elements import parse
from ich_ray.ct.pixels import NATIVE
from ich_ray.ct.source import read_file
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows, window_slice
from tests.ct.files import head, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Times: TypeAlias = NDArray[np.float64]

SIZE = 128
TO_REACH = {SIZE: 12, 256: 8, 384: 5, 512: 16}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
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


def milliseconds(contenders: dict[str, tuple[Callable[[Any], object], list[Any]]], rounds: int) -> dict[str, Times]:
    """The mean time per file of each round, after one file that compiles and warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for function, inputs in contenders.values():
        function(inputs[0])
    for _ in range(rounds):
        for name, (function, inputs) in contenders.items():
            started = time.process_time()
            for one in inputs:
                function(one)
            times[name].append((time.process_time() - started) / len(inputs) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: Times, by: Times) -> str:
    low, median, high = np.percentile(times / by, [25, 50, 75])
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def keep_memory() -> None:
    """Let the C library give no memory back to the system, as far as it can be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if not (mallopt and mallopt(_MMAP_THRESHOLD, 2**25) and mallopt(_TRIM_THRESHOLD, 2**30)):
        print("this C library keeps memory or not as it likes: see --stock-memory")


def made(folder: Path, files: int) -> list[Path]:
    paths = [folder / f"{number:04d}.dcm" for number in range(files)]
    for number, path in enumerate(paths):
        path.write_bytes(make(head(512, 512, seed=number), signed=bool(number % 2), SOPInstanceUID=f"ID_{number}"))
    return paths


def found(folder: Path, files: int) -> list[Path]:
    slices = ((path, read_slice(path)) for path in sorted(folder.rglob("*.dcm")))
    fitting = (path for path, ct in slices if ct.stored.shape == (512, 512) and ct.header.transfer_syntax in NATIVE)
    return list(islice(fitting, files))


def measure(paths: list[Path], sizes: list[int], rounds: int) -> None:
    data = [memoryview(path.read_bytes()) for path in paths]
    slices = [read_slice(view) for view in data]
    contenders: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "read only": (lambda path: read_file(str(path)), paths),
        "read, parse, check, view": (read_slice, paths),
        "  parse": (parse, data),
        "  parse, check, view": (read_slice, data),
        "pydicom dcmread": (lambda view: pydicom.dcmread(io.BytesIO(view)), data),
    }
    for size in sizes:
        contenders[f"  window to {size}"] = (partial(window_slice, windows=WINDOWS, size=size), slices)
        contenders[f"usual {size}"] = (partial(usual, size=size), paths)
        contenders[f"ours {size}"] = (partial(ours, size=size), paths)
    times = milliseconds(contenders, rounds)
    for name, values in times.items():
        print(f"{name:26} {np.median(values):7.3f} ms a file")
    print("\n512 to  usual / ours          to reach  ours / read only    usual / read, parse, check   differences")
    for size in sizes:
        differences = np.stack([ours(path, size).astype(int) - usual(path, size) for path in paths[:8]])
        slow, fast = times[f"usual {size}"], times[f"ours {size}"]
        print(
            f"{size:6}  {ratio(slow, fast):20}  {TO_REACH.get(size, ''):8}  {ratio(fast, times['read only']):18}  "
            f"{ratio(slow, times['read, parse, check, view']):27}  "
            f"at most {abs(differences).max()}, mean {abs(differences).mean():.4f} grey levels"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(TO_REACH))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stock-memory", action="store_true")
    options = parser.parse_args()
    if options.stock_memory and len(options.sizes) > 1:
        for size in options.sizes:
            subprocess.run([sys.executable, *sys.argv, "--sizes", str(size)], check=True)
        return
    if not options.stock_memory:
        keep_memory()
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        paths = found(options.folder, options.files) if options.folder else made(Path(folder), options.files)
        measure(paths, options.sizes, options.rounds)


if __name__ == "__main__":
    main()
