"""Predicting from DICOM files: one slice once the bundle is loaded, a folder against its two halves, and Ray Data.

One slice: milliseconds for 512x512 pixels (decode, window, network, decision; by the clock, and of CPU time, which
other work on the machine does not change).

A folder, of so many files that a fast network, too, is busy for a second: decoding alone and the network alone, each on
half of the CPUs, and both together on all of them, in turns; medians of their rates, and the rate of both as a share of
the slower half. 1 is a pipeline in which neither waits for the other. Beside it the same in CPU time, which other work
does not change: what both together should take, by what they take alone, over what they take.

`ray` adds Ray Data: its rate once started over that of the CPUs' number of single processes, and the peak memory of
this process and its workers (proportional set size) on few and on many files.

    python benchmarks/predicting.py [ray] [--turns 7] [--memory 2000 10000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from preparing import Watched

from ich_ray import progress
from ich_ray.bundle import batch_predict
from ich_ray.bundle.bundle import WEIGHTS_FILE, Bundle, load_bundle
from ich_ray.bundle.card import Card, DatasetNote, OperatingPoint, SearchNote
from ich_ray.bundle.prediction import Predictor, list_inputs
from ich_ray.ct.phantom import write_phantom
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.results import WeightsNote
from ich_ray.storage import locate
from ich_ray.training.inference import EVALUATION_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, SINGLES = 128, 15


def make_bundle(folder: Path, architecture: str) -> Bundle:
    parameters = Hyperparameters(architecture=architecture)
    shape = (3, SIZE, SIZE)
    card = Card(
        name="benchmark",
        created=0.0,
        architecture=architecture,
        parameters=parameters,
        image_shape=shape,
        size=SIZE,
        windows=parse_windows(DEFAULT_WINDOWS),
        dataset=DatasetNote(fingerprint="0" * 32, roles={}),
        search=SearchNote(name="", trial=0, trials=0, objective="", selection_value=None),
        operating_points={"f2": OperatingPoint(threshold=0.5, sensitivity=None, specificity=None, ppv=None, f2=None)},
        weights=WeightsNote(file=WEIGHTS_FILE, sha256="0" * 64),
        versions={},
    )
    bundle = Bundle(build_network(parameters, shape), card)
    bundle.save(folder)
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["ray"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--memory", type=int, nargs=2, default=[2000, 10_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_phantom(root / "dicom", patients=60, seed=0)
        inputs = list_inputs([root / "dicom" / "stage_2_train"])
        for architecture, slices in (("plain_cnn", 1500), ("resnet18", 256), ("resnet50", 256)):
            bundle = make_bundle(root / architecture, architecture)
            one_by_one(architecture, bundle, [file for file, _ in inputs])
            folder(architecture, Predictor(bundle, "f2"), (inputs * 4)[:slices], options.turns)
        if options.what == "ray":
            through_ray(root, inputs, options.memory)


def one_by_one(architecture: str, bundle: Bundle, files: list[str]) -> None:
    bundle.predict(files[:1])
    took, used = [], []
    for file in files[:SINGLES]:
        started, before = time.perf_counter(), time.process_time()
        bundle.predict([file])
        took.append(1000 * (time.perf_counter() - started))
        used.append(1000 * (time.process_time() - before))
    print(f"{architecture}: one slice {median(took):.0f} ms, {median(used):.0f} ms of CPU time")


class Timed(NamedTuple):
    """Slices a second by the clock, and CPU milliseconds a slice."""

    rate: float
    cpu_ms: float


def timed(work: Callable[[], object], slices: int) -> Timed:
    started, before = time.perf_counter(), time.process_time()
    work()
    return Timed(slices / (time.perf_counter() - started), 1000 * (time.process_time() - before) / slices)


def on_threads(work: Callable[[list[Any]], object], parts: list[list[Any]], count: int) -> None:
    """Work on each part, on `count` threads at a time with one thread of PyTorch each."""
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, parts))


def folder(architecture: str, predictor: Predictor, inputs: list[tuple[str, str]], turns: int) -> None:
    cpus = len(os.sched_getaffinity(0))
    half, threads = max(1, cpus // 2), torch.get_num_threads()
    parts = [inputs[start : start + EVALUATION_BATCH] for start in range(0, len(inputs), EVALUATION_BATCH)]
    images = [list(predictor.read(part)[1]) for part in parts]
    halves: dict[str, Callable[[], object]] = {
        "decoding": lambda: on_threads(predictor.read, parts, half),
        "network": lambda: on_threads(lambda part: predictor.bundle.probabilities(np.stack(part)), images, half),
        "both": lambda: list(predictor.stream(inputs)),
    }
    found: dict[str, list[Timed]] = {name: [] for name in halves}
    for turn in range(turns + 1):
        for name, work in halves.items():
            one = timed(work, len(inputs))
            torch.set_num_threads(threads)
            if turn:  # the first one warms up
                found[name].append(one)
    rates = {name: median(one.rate for one in turns) for name, turns in found.items()}
    cpu = {name: median(one.cpu_ms for one in turns) for name, turns in found.items()}
    shares = [both.rate / min(d.rate, n.rate) for d, n, both in zip(*found.values(), strict=True)]
    low, middle, high = quantiles(shares)
    told = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())
    print(
        f"{architecture}: {told}: {middle:.2f} of the slower half ({low:.2f} to {high:.2f}; to reach: 0.80); of CPU "
        f"time {(cpu['decoding'] + cpu['network']) / cpu['both']:.2f} (decoding {cpu['decoding']:.2f} ms a slice, "
        f"network {cpu['network']:.2f})"
    )


def through_ray(root: Path, inputs: list[tuple[str, str]], counts: list[int]) -> None:
    images = [str(root / "dicom" / "stage_2_train")]
    predictor = Predictor(load_bundle(root / "plain_cnn"), "f2")
    batch_predict._WORTH_RAY = 1
    peaks = []
    for count in counts:
        alone = timed(lambda: on_threads(predictor._predict, [inputs[:EVALUATION_BATCH]] * 3, 1), 3 * EVALUATION_BATCH)
        torch.set_num_threads(torch.get_num_threads())
        watched, over = Watched(), threading.Event()
        sampler = threading.Thread(target=watched.sample, args=(over,), daemon=True)
        sampler.start()
        progress.bar = watched.bar  # type: ignore[assignment]
        batch_predict.predict(root / "plain_cnn", images * (count // len(inputs) + 1), locate(root / "out.parquet"))
        over.set()
        sampler.join()
        peaks.append(watched.peak_bytes / 2**20)
        share = watched.rate() / alone.rate / len(os.sched_getaffinity(0))
        print(
            f"Ray Data, {watched.done[-1][1]} files: {watched.rate():.0f}/s once started, {share:.2f} of as many "
            f"single processes as CPUs; peak {peaks[-1]:,.0f} MiB"
        )
    print(f"peak memory on most / fewest files: {peaks[-1] / peaks[0]:.2f}   (to stay near: 1)")


if __name__ == "__main__":
    main()
