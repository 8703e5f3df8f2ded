"""Predicting from DICOM files: one slice once the bundle is loaded, a folder against its two halves, and Ray Data.

One slice: milliseconds for 512x512 pixels (decode, window, network, decision; by the clock, and of CPU time, which
other work on the machine does not change).

A folder, of so many files that a fast network, too, is busy for a second: decoding alone and the network alone, each on
half of the CPUs, and both together on all of them, in turns; medians of their rates, and the rate of both as a share of
the slower half. 1 is a pipeline in which neither waits for the other. Beside it the same in CPU time, which other work
does not change: what both together should take, by what they take alone, over what they take.

`series` alone takes whole series, whose file names say nothing of them: a network that sees a neighbor on
either side against one of the same kind that sees single slices, headers and all, as slices a second of the one over
those of the other; and the same without the network (both answer one half), which is what reading by series costs. By
the clock and in CPU time, in turns, as medians with quartiles.

`sequence` takes whole series by the same network without a sequence model and with one, headers and all: slices a
second with it over those without, by the clock and in CPU time, in turns, as medians with quartiles.

`ray` adds Ray Data: its rate once started over that of the CPUs' number of single processes, and the peak memory of
this process and its workers (proportional set size) on few and on many files.

    python benchmarks/predicting.py [ray|series|sequence] [--turns 7] [--memory 2000 10000] [--patients 8]
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
from ich_ray.bundle.card import Card, DatasetNote, SearchNote
from ich_ray.bundle.input_survey import read_facts_ahead, survey_inputs
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.bundle.prediction import Predictor, list_inputs
from ich_ray.bundle.sequence_note import Blend, SequenceNote
from ich_ray.ct.continuous_phantom import write_continuous_phantom
from ich_ray.ct.phantom import write_phantom
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.model.pooled_features import FeatureNetwork
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.storage import locate
from ich_ray.training.inference import EVALUATION_BATCH
from ich_ray.trial_records import WeightsNote

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ich_ray.bundle.input_survey import Input
    from ich_ray.bundle.prediction import Prediction, Scorer

SIZE, SINGLES = 128, 15


class NoNetwork:
    """A bundle that answers one half, whatever it is shown."""

    def __init__(self, bundle: Bundle) -> None:
        self.card, self.operating_point = bundle.card, bundle.operating_point

    def label_logits(self, images: NDArray[np.uint8], _: object = None) -> NDArray[np.float32]:
        return np.zeros((len(images), 1), np.float32)

    def label_calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.full(logits.shape, 0.5)


def make_bundle(folder: Path, architecture: str, neighbors: int = 0) -> Bundle:
    parameters = Hyperparameters(architecture=architecture, neighbors=neighbors)
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
    parser.add_argument("what", nargs="?", choices=["ray", "series", "sequence"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--memory", type=int, nargs=2, default=[2000, 10_000])
    parser.add_argument("--patients", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if options.what == "series":
            whole_series(root, options.patients, options.turns)
            return
        if options.what == "sequence":
            with_sequence(root, options.patients, options.turns)
            return
        write_phantom(root / "dicom", patients=60, seed=0)
        inputs = list_inputs([root / "dicom" / "stage_2_train"])
        for architecture, slices in (("plain_cnn", 1500), ("resnet18", 256), ("resnet50", 256)):
            bundle = make_bundle(root / architecture, architecture)
            one_by_one(architecture, bundle, [given.file for given in inputs])
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


def folder(architecture: str, predictor: Predictor, inputs: list[Input], turns: int) -> None:
    cpus = len(os.sched_getaffinity(0))
    half, threads = max(1, cpus // 2), torch.get_num_threads()
    parts = predictor.parts(inputs)
    images = [predictor._beside_each_other(seen) for part in parts for _, _, seen in predictor.read(part)]
    halves: dict[str, Callable[[], object]] = {
        "decoding": lambda: on_threads(lambda part: [*predictor.read(part)], parts, half),
        "network": lambda: on_threads(predictor.bundle.probabilities, images, half),
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


def whole_series(root: Path, patients: int, turns: int) -> None:
    """Slices a second of a network that sees neighbors over those of one that sees single slices."""
    write_continuous_phantom(root / "dicom", patients=patients, seed=0)
    inputs = list_inputs([root / "dicom" / "stage_2_train"])
    threads = torch.get_num_threads()
    for architecture in ("plain_cnn", "resnet18"):
        bundles = [make_bundle(root / f"{architecture}{count}", architecture, count) for count in (0, 1)]
        works: dict[str, list[Scorer]] = {"with the network": [*bundles], "without": [*map(NoNetwork, bundles)]}
        for name, scorers in works.items():
            found: list[list[Timed]] = [[], []]
            for turn in range(turns + 1):
                for place in (0, 1) if turn % 2 else (1, 0):
                    one = timed(lambda scorer=scorers[place]: surveyed(scorer, inputs), len(inputs))
                    torch.set_num_threads(threads)
                    if turn:  # the first one warms up
                        found[place].append(one)
            alone, seeing = found
            clock = quantiles([b.rate / a.rate for a, b in zip(alone, seeing, strict=True)])
            cpu = quantiles([a.cpu_ms / b.cpu_ms for a, b in zip(alone, seeing, strict=True)])
            print(
                f"{architecture} {name}, {len(inputs)} slices: {median(one.cpu_ms for one in alone):.2f} and "
                f"{median(one.cpu_ms for one in seeing):.2f} ms of CPU time a slice; neighbors / single slices "
                f"{clock[1]:.2f} ({clock[0]:.2f} to {clock[2]:.2f}) by the clock, {cpu[1]:.2f} ({cpu[0]:.2f} to "
                f"{cpu[2]:.2f}) in CPU time; to reach: 0.80"
            )


def with_sequence(root: Path, patients: int, turns: int) -> None:
    """Slices a second of a bundle with a sequence model over those of the same network without."""
    write_continuous_phantom(root / "dicom", patients=patients, seed=0)
    inputs = list_inputs([root / "dicom" / "stage_2_train"])
    threads = torch.get_num_threads()
    for architecture in ("plain_cnn", "resnet18"):
        plain = make_bundle(root / architecture, architecture)
        features = FeatureNetwork(plain.network, plain.card.input_shape).width
        for model in ("bigru", "transformer"):
            parameters = SequenceParameters(model=model, hidden=256, layers=2, projection=256)
            note = SequenceNote(parameters=parameters, features=features, blend={"any": Blend()})
            sequenced = plain.with_sequence(build_sequence_network(parameters, features, 1), note)
            sequenced.card = sequenced.card.model_copy(update={"operating_points": plain.card.operating_points})
            rates: list[list[Timed]] = [[], []]
            for turn in range(turns + 1):
                for place in (0, 1) if turn % 2 else (1, 0):
                    scorer = (plain, sequenced)[place]
                    one = timed(lambda scorer=scorer: surveyed(scorer, inputs), len(inputs))
                    torch.set_num_threads(threads)
                    if turn:  # the first one warms up
                        rates[place].append(one)
            clock = quantiles([b.rate / a.rate for a, b in zip(*rates, strict=True)])
            cpu = quantiles([a.cpu_ms / b.cpu_ms for a, b in zip(*rates, strict=True)])
            print(
                f"{architecture} and {model} of 2 x 256, {len(inputs)} slices: "
                f"{median(one.cpu_ms for one in rates[0]):.2f} and {median(one.cpu_ms for one in rates[1]):.2f} ms of "
                f"CPU time a slice; with / without sequence model {clock[1]:.2f} ({clock[0]:.2f} to {clock[2]:.2f}) by "
                f"the clock, {cpu[1]:.2f} ({cpu[0]:.2f} to {cpu[2]:.2f}) in CPU time; to reach: 0.90"
            )


def surveyed(scorer: Scorer, inputs: list[Input]) -> list[Prediction]:
    survey = survey_inputs(inputs, read_facts_ahead(inputs), None)
    return [row for rows in Predictor(scorer, "f2").stream(survey.inputs, survey.table) for row in rows]


def through_ray(root: Path, inputs: list[Input], counts: list[int]) -> None:
    images = [str(root / "dicom" / "stage_2_train")]
    predictor = Predictor(load_bundle(root / "plain_cnn"), "f2")
    batch_predict._WORTH_RAY = 1
    peaks = []
    for count in counts:
        alone = timed(lambda: on_threads(predictor.predict, predictor.parts(inputs)[:1] * 3, 1), 3 * EVALUATION_BATCH)
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
