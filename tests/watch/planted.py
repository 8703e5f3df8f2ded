"""Ledgers for tests of the page, written by hand, without a driver; and the page of one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ich_ray.storage import Location, SearchFiles, locate, write_json
from ich_ray.trial_records import TrialResult
from ich_ray.watch.server import Watch
from tests.html_report.fake_search import SPACE, START, fake_trials
from tests.records import make_record


def plant_search(folder: Path, trials: int = 12, running: int = 2, wanted: int = 20, **changes: Any) -> SearchFiles:
    """A search whose last trials are under way; two machines of two slots each."""
    files = SearchFiles(locate(folder))
    record = make_record(name="demo", trials=wanted).model_copy(update={"space": SPACE, "created": START})
    write_json(files.search, record.model_copy(update=changes).model_dump(mode="json"))
    for trial in fake_trials(trials, np.random.default_rng(0), slots=4):
        where = f"gpu-{trial.number % 4 // 2}:{1000 + trial.number % 4}" if trial.reports else ""
        change: dict[str, Any] = {"where": where}
        if trial.number >= trials - running:
            change |= {"state": "running", "ended": None, "reason": "", "detail": "", "reports": trial.reports[:2]}
        write_trial(files, trial.model_copy(update=change))
    return files


def write_trial(files: SearchFiles, trial: TrialResult) -> None:
    write_json(files.trial(trial.number), trial.model_dump(mode="json"))


@contextmanager
def served(where: Location, price: float | None = None) -> Iterator[Watch]:
    """The page of a search, served until the block ends."""
    watch = Watch(where, 0, price)
    watch.read()
    thread = threading.Thread(target=watch.serve, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.close()
        thread.join(60)
