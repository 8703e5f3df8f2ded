"""How long the page of `ich-ray watch` takes to appear and to go on, at 10,000 trials against 100, in Chromium.

Ledgers are written by hand: full reports, six trials under way. Two times in each round, in the order of a coin:
opening the address until the whole search is shown and painted, and writing the report of one trial until the page has
painted it, which waits for the ledger to be looked at. Beside them the reading of the ledger when `watch` starts, and
what the page's own script takes for each.

    python -m benchmarks.watching [--rounds 5] [--trials 100 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import machine
from ich_ray.results import read_trial
from ich_ray.storage import SearchFiles, locate, write_bytes
from ich_ray.watch.server import Watch
from tests.html_report.chromium import Tab, tab
from tests.html_report.fake_search import SPACE, START, fake_trials
from tests.records import make_record
from tests.watch.browser import becomes, open_page

# Marks the moment when what a version of the page shows has been painted; the page itself knows nothing of it.
PAINTED = """
new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => performance.mark("painted"), 0)))
  .observe(document, { attributes: true, attributeFilter: ["data-version"], subtree: true });
"""
PAINTS = "performance.getEntriesByName('painted')"
SCRIPT = "performance.getEntriesByName('drawn').at(-1).duration"


def plant(root: Path, trials: int) -> SearchFiles:
    """A search of so many trials, the last six of them under way."""
    files = SearchFiles(locate(root))
    Path(str(files.trials)).mkdir(parents=True)
    record = make_record(name="demo", trials=trials + 20).model_copy(update={"space": SPACE, "created": START})
    files.search.write_text(record.model_dump_json())
    for trial in fake_trials(trials, np.random.default_rng(0), slots=8):
        change: dict[str, Any] = {"where": f"gpu-{trial.number % 8 // 4}:{1000 + trial.number % 8}"}
        if trial.number >= trials - 6:
            half = trial.reports[: len(trial.reports) // 2]
            change |= {"state": "running", "ended": None, "reason": "", "reports": half}
        files.trial(trial.number).write_text(trial.model_copy(update=change).model_dump_json())
    return files


async def first_paint(opened: Tab, watch: Watch) -> tuple[float, float]:
    """Milliseconds from opening until the search is painted, and of them in the page's script."""
    await opened.command("Page.navigate", url="about:blank")
    await open_page(opened, watch.address)
    await becomes(opened, f"{PAINTS}.length")
    return float(await opened.evaluate(f"{PAINTS}.at(-1).startTime")), float(await opened.evaluate(SCRIPT))


async def update(opened: Tab, files: SearchFiles, number: int) -> tuple[float, float]:
    """Milliseconds from a write in the ledger until it is painted, and of them in the page's script."""
    trial = read_trial(files, files.trial(number))
    changed = trial.model_copy(update={"attempts": trial.attempts + 1}).model_dump_json().encode()
    before, began = await opened.evaluate(f"{PAINTS}.length"), time.time()
    write_bytes(files.trial(number), changed)
    await becomes(opened, f"{PAINTS}.length > {before}")
    painted = await opened.evaluate(f"performance.timeOrigin + {PAINTS}.at(-1).startTime")
    return float(painted) - 1000 * began, float(await opened.evaluate(SCRIPT))


async def rounds(served: dict[int, tuple[Watch, SearchFiles]], count: int) -> dict[str, dict[int, list[float]]]:
    names = ("first paint", "its script", "update", "script of an update")
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in served} for name in names}
    async with tab() as opened:
        await opened.command("Page.enable")
        await opened.command("Page.addScriptToEvaluateOnNewDocument", source=PAINTED)
        for watch, _ in served.values():  # so that neither pays for the browser's own start
            await first_paint(opened, watch)
        for _ in range(count):
            for size in random.sample([*served], len(served)):
                watch, files = served[size]
                found = (*await first_paint(opened, watch), *await update(opened, files, size - 1))
                for name, took in zip(names, found, strict=True):
                    times[name][size].append(took)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, nargs=2, default=[100, 10_000])
    asked = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        served = {}
        for size in asked.trials:
            files = plant(Path(folder) / str(size), size)
            watch = Watch(files.root, 0)
            began = time.monotonic()
            watch.read()
            took, told = time.monotonic() - began, len(watch.board.message(None))
            print(f"{size:,} trials: ledger read in {took:.2f} s, {told:,} bytes to a new page")
            threading.Thread(target=watch.serve, daemon=True).start()
            served[size] = watch, files
        times = asyncio.run(rounds(served, asked.rounds))
        for watch, _ in served.values():
            watch.close()
    few, many = asked.trials
    for name, of in times.items():
        ratio = statistics.median(b / a for a, b in zip(of[few], of[many], strict=True))
        low, high = statistics.median(of[few]), statistics.median(of[many])
        print(f"{name:20} {low:7.0f} ms at {few:,}, {high:7.0f} ms at {many:,}: {ratio:.2f} times (median of rounds)")


if __name__ == "__main__":
    main()
