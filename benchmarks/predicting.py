"""Predicting from DICOM files: one slice once the bundle is loaded, then a folder against its two halves.

Prints milliseconds for one 512x512 slice (decode, window, network, decision; by the clock, and of CPU time, which
other work on the machine does not change), and the rate over a folder as a share of the slower of decoding alone and
the network alone: 1 would be perfect overlap. `python predicting.py ray` adds Ray Data: its rate on all CPUs, and the
memory of this process for four times as many files.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.ct.phantom import write_phantom
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.final import archive
from ich_ray.final.bundle import WEIGHTS_FILE, Bundle
from ich_ray.final.card import Card, DatasetNote, OperatingPoint, SearchNote, WeightsNote
from ich_ray.final.prediction import Predictor, list_inputs
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.storage import locate

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
        dataset=DatasetNote(fingerprint="", roles={}),
        search=SearchNote(name="", trial=0, trials=0, objective="", selection_value=None),
        operating_points={"f2": OperatingPoint(threshold=0.5, sensitivity=None, specificity=None, ppv=None, f2=None)},
        weights=WeightsNote(file=WEIGHTS_FILE, sha256=""),
        versions={},
    )
    bundle = Bundle(build_network(parameters, shape), card)
    bundle.save(folder)
    return bundle


def rate(work: Callable[[], object], slices: int) -> float:
    started = time.perf_counter()
    work()
    return slices / (time.perf_counter() - started)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_phantom(root / "dicom", patients=6, seed=0)
        inputs = list_inputs([root / "dicom" / "stage_2_train"])
        for architecture in ("plain_cnn", "resnet18", "resnet50"):
            bundle = make_bundle(root / architecture, architecture)
            one_by_one(architecture, bundle, [file for file, _ in inputs])
            folder(architecture, Predictor(bundle, "f2"), inputs)
        if "ray" in sys.argv:
            through_ray(root, len(inputs))


def one_by_one(architecture: str, bundle: Bundle, files: list[str]) -> None:
    bundle.predict(files[:1])
    took, used = [], []
    for file in files[:SINGLES]:
        started, before = time.perf_counter(), time.process_time()
        bundle.predict([file])
        took.append(1000 * (time.perf_counter() - started))
        used.append(1000 * (time.process_time() - before))
    print(f"{architecture}: one slice {median(took):.0f} ms, {median(used):.0f} ms of CPU time")


def folder(architecture: str, predictor: Predictor, inputs: list[tuple[str, str]]) -> None:
    images = np.stack(predictor.read(inputs)[1])
    decoding = rate(lambda: predictor.read(inputs), len(inputs))
    network = rate(lambda: predictor.bundle.probabilities(images), len(inputs))
    both = rate(lambda: list(predictor.stream(inputs)), len(inputs))
    print(
        f"{architecture}: decoding {decoding:.0f}/s, network {network:.0f}/s, both {both:.0f}/s: "
        f"{both / min(decoding, network):.2f} of the slower"
    )


def through_ray(root: Path, slices: int) -> None:
    memory = []
    for times in (1, 4):
        files = [str(root / "dicom" / "stage_2_train")] * times
        archive._WORTH_RAY = 1
        work = partial(archive.predict, root / "plain_cnn", files, locate(root / "out.parquet"))
        found = rate(work, slices * times)
        memory.append(getrusage(RUSAGE_SELF).ru_maxrss / 1024)
        print(f"Ray Data, {slices * times} files: {found:.0f}/s with its start, {memory[-1]:.0f} MiB in this process")
    print(f"memory for 4 times the files / for the files: {memory[1] / memory[0]:.2f}")


if __name__ == "__main__":
    main()
