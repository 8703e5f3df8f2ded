"""What a trial waits for its states, where storage takes as long for one as training takes from report to report.

The trial function as a worker runs it, without Ray: its states written beside the training, before each report (as was
done once), and not at all. Device and storage are planted: both take their time without using the processor, as a GPU
and an upload do; the state is copied, packed, hashed and written to the disk as any. Prints ratios of wall time within
a round, and what the trial says that it has written against what the storage was given.

    python benchmarks/saving.py [--rounds 3] [--reports 9] [--report-s 3] [--state-mb 100]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.contest import machine, ratios, spread, table
from ich_ray.search.tune import trial as trials
from ich_ray.search.tune import trial_files
from ich_ray.search.tune.trial import TrialSettings, trial_function
from ich_ray.storage import write_bytes
from ich_ray.training import state as states
from ich_ray.training.state import TrainingState
from tests.prepared import make_dataset
from tests.searched import make_search

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("not at all", "beside", "before each report")


class _Never(threading.Event):
    """Whoever asks whether the process has written a state writes it before its report."""

    def set(self) -> None: ...


@dataclass(frozen=True)
class Progress:
    """A report of the device."""

    images_seen: int
    weights: torch.Tensor
    elapsed_s: float = 0.0
    setup: None = None

    @property
    def metrics(self) -> dict[str, float]:
        return {"average_precision": 0.5}

    def state(self) -> TrainingState:
        copies = {"weights.x": self.weights.detach().to("cpu", copy=True)}
        return TrainingState(copies, {"images_seen": self.images_seen, "elapsed_s": 0.0, "plan": {}})


@dataclass
class Planted:
    """A device that takes `report_s` from report to report, and a storage that takes it for a state."""

    report_s: float
    state_mb: float
    states: int = 0
    size: int = 0

    def train(self, _: object, __: object, settings: TrialSettings, *___: object) -> Iterator[Progress]:
        weights = torch.zeros(int(self.state_mb * 1e6 / 4))
        for seen in range(settings.report_every, settings.images + 1, settings.report_every):
            time.sleep(self.report_s)
            weights += 1
            yield Progress(seen, weights)

    def write(self, path: Any, data: bytes) -> None:
        time.sleep(self.report_s)
        write_bytes(path, data)
        self.states, self.size = self.states + 1, self.size + len(data)


def once(way: str, settings: TrialSettings, planted: Planted) -> tuple[float, float]:
    """Seconds to the last report, and MB that the trial says it has written."""
    told: list[tuple[float, int]] = []
    has_written = _Never() if way == "before each report" else threading.Event()
    has_written.set()  # as in a process that has served another trial
    with (
        mock.patch.object(
            trials,
            "tune",
            SimpleNamespace(report=lambda one: told.append((time.perf_counter(), one.get("bytes_written", 0)))),
        ),
        mock.patch.object(trials, "node_id", str),
        mock.patch.object(trials, "devices_held", list),
        mock.patch.object(trials, "admitted", return_value=0.0),
        mock.patch.object(trial_files, "_has_written", has_written),
        mock.patch.object(states, "write_bytes", planted.write),
        mock.patch.object(trial_files.TrialFiles, "after_report") if way == "not at all" else nullcontext(),
    ):
        began = time.perf_counter()
        config = {"number": 0, "seed": 1, "parameters": {}, "fold": None, "reported": 0}
        trial_function(settings, planted.train)(config)
    *reports, _ = told  # as nobody ends the trial at its last report, it says once more that it has ended
    return reports[-1][0] - began, sum(size for _, size in reports) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reports", type=int, default=9)
    parser.add_argument("--report-s", type=float, default=3)
    parser.add_argument("--state-mb", type=float, default=100)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    counted: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "data", 40, 32)
        for number in range(options.rounds):
            for way in WAYS[number % 3 :] + WAYS[: number % 3]:
                files = make_search(Path(folder) / f"{number}-{way.replace(' ', '-')}", dataset)
                settings = TrialSettings(
                    dataset=str(dataset.files.root),
                    fingerprint=dataset.manifest.fingerprint,
                    search=str(files.root),
                    images=100 * options.reports,
                    report_every=100,
                    cpus=1,
                    gpus=0,
                )
                planted = Planted(options.report_s, options.state_mb)
                taken, told_mb = once(way, settings, planted)
                seconds[way].append(taken)
                counted[way] = f"{planted.states} states, {told_mb:.1f} of {planted.size / 1e6:.1f} MB"
    rows = [
        [way, f"{statistics.median(of):.1f}", spread(ratios(of, seconds[WAYS[0]]), 2), counted[way]]
        for way, of in seconds.items()
    ]
    print(f"{options.reports} reports, {options.report_s:g} s to each and for each state of {options.state_mb:g} MB")
    print(table(["states are written", "seconds", "of no saving", "told of given"], rows))
    print(machine())


if __name__ == "__main__":
    main()
