"""What a search adds to its training: 1,000 trials of four short reports on two slots, with and without the ledger.

The floor is the same trials with no cost between them. Prints ratios measured in one run; a gap is the time in which a
slot trained nothing, from the last report of a trial to the start of the next one's training on the same worker.

    python benchmarks/search_overhead.py [--trials 1000] [--report-ms 20]
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from ich_ray import cli
from ich_ray.results import SearchResult
from ich_ray.runtime import connected
from ich_ray.search import ledger
from ich_ray.search.run import run_search
from tests.prepared import make_dataset
from tests.search.fakes import FakeTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.search_records import SearchRecord

REPORTS = 4
READING = {"the best ten": [], "all as JSON": ["--json", "--top", "100000"]}
SPACE = """
name: overhead
budget: {images: 400, report_every: 100, first_rung: 400}
parameters:
  learning_rate: {loguniform: [1.0e-5, 1.0e-1]}
  dropout: {uniform: [0.0, 0.6]}
  optimizer: {choice: [sgd, adam, adamw]}
"""


def gaps(found: SearchResult, report_s: float) -> list[float]:
    """Idle time of each slot between two trials, without the first trial of each (its worker was starting)."""
    slots: dict[str, list[tuple[float, float]]] = {}
    for trial in found.trials:
        span = (trial.reports[0].time - report_s, trial.reports[-1].time)
        slots.setdefault(trial.where, []).append(span)
    idle = []
    for spans in slots.values():
        spans.sort()
        idle += [after[0] - before[1] for before, after in pairwise(spans)]
    return idle


def measure(folder: Path, name: str, trials: int, report_s: float) -> SearchResult:
    return run_search(
        folder / "data",
        folder / "space.yaml",
        folder / name,
        trials=trials,
        concurrent=2,
        _trainer=FakeTrainer(wait_s=report_s),
    )


def seconds(found: SearchResult) -> float:
    """From the first report of the slowest-starting slot to the last report: start-up is left out."""
    times = sorted(report.time for trial in found.trials for report in trial.reports)
    return times[-1] - times[0]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=1000)
    arguments.add_argument("--report-ms", type=float, default=20.0)
    given = arguments.parse_args()
    report_s = given.report_ms / 1000
    floor = REPORTS * report_s / 2
    with tempfile.TemporaryDirectory() as temporary, connected(cpus=2):
        folder = Path(temporary)
        make_dataset(folder / "data")
        (folder / "space.yaml").write_text(SPACE)
        measure(folder, "warm-up", 4, report_s)
        with watched(folder / "with" / "trials") as memory:
            found = measure(folder, "with", given.trials, report_s)
        reading = {what: reading_s(str(folder / "with"), arguments) for what, arguments in READING.items()}
        few = max(given.trials // 5, 20)
        some = measure(folder, "some", few, report_s)
        with mock.patch.object(ledger, "write_bytes"), mock.patch("ich_ray.search.run.open_search"), kept() as ledgers:
            measure(folder, "without", few, report_s)
        unwritten = SearchResult(ledgers[0].files, ledgers[0].record, tuple(ledgers[0].trials.values()))
    each, idle = seconds(found) / given.trials, sorted(gaps(found, report_s))
    print(f"{given.trials} trials: {each:.4f} s each, {each / floor:.2f} x the floor of {floor:.3f} s")
    late = idle[-len(idle) // 100]
    print(f"idle between two trials of a slot: median {statistics.median(idle):.4f} s, 99 % {late:.4f} s")
    print(f"workers used: {len({trial.where for trial in found.trials})}")
    print(f"ledger on / off, {few} trials: {seconds(some) / seconds(unwritten):.2f} x")
    grown_kib = np.polyfit(*zip(*memory[len(memory) // 5 :], strict=True), 1)[0]
    print(f"driver memory: {memory[-1][1] / 1024:.0f} MiB at the end, growing by {grown_kib:.1f} KiB a trial")
    told = [f"{what} {wall:.2f} s ({cpu:.2f} s of CPU)" for what, (wall, cpu) in reading.items()]
    print(f"results of {given.trials} trials: {', '.join(told)}")


def reading_s(folder: str, arguments: list[str]) -> tuple[float, float]:
    """Seconds of `ich-ray results` in a process that has started, and of them on its CPU, free of other work."""
    started, used = time.perf_counter(), time.process_time()
    with redirect_stdout(io.StringIO()):
        assert cli.call(["results", folder, *arguments]) == 0
    return time.perf_counter() - started, time.process_time() - used


@contextmanager
def watched(trials: Path) -> Iterator[list[tuple[int, float]]]:
    """Trials begun and the driver's resident KiB, twice a second."""
    seen: list[tuple[int, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            begun = sum(1 for _ in trials.iterdir()) if trials.exists() else 0
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.extend([(begun, pages * 4.0)] if begun else [])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@contextmanager
def kept() -> Iterator[list[ledger.Ledger]]:
    """The ledgers that searches begin within the block."""
    ledgers: list[ledger.Ledger] = []
    create = ledger.Ledger.create

    def remember(out: Path, record: SearchRecord) -> ledger.Ledger:
        ledgers.append(create(out, record))
        return ledgers[-1]

    with mock.patch.object(ledger.Ledger, "create", remember):
        yield ledgers


if __name__ == "__main__":
    main()
