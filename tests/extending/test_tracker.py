"""A tracker from outside: a text file with a line for each report, asked for as `--to lines=FILE`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.cli import call
from ich_ray.search.export.trackers import TRACKERS, Tracker
from ich_ray.search_records import SearchRecord
from ich_ray.trial_records import TrialResult
from tests.prepared import make_dataset
from tests.searched import make_search


class Lines(Tracker):
    """Trial, images and value; what stands in the file is asked of it, so that no line comes twice."""

    is_path = True

    def __init__(self, place: str, record: SearchRecord) -> None:
        self.file, self.metric = Path(place), record.objective.metric
        self.command = f"less {self.file}"

    def write(self, trial: TrialResult) -> None:
        there = self.file.read_text() if self.file.exists() else ""
        whole = there[: there.rfind("\n") + 1]  # without a line that a kill has torn
        rows = (f"{trial.number} {one.images_seen} {one.metrics[self.metric]}\n" for one in trial.reports)
        new = [row for row in rows if row not in whole.splitlines(keepends=True)]
        if new or whole != there:
            self.file.write_text(whole + "".join(new))


def test_a_search_is_streamed_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TRACKERS, "registered", {})  # for this test alone
    TRACKERS.register("lines", Lines)
    search, file = make_search(tmp_path / "search", make_dataset(tmp_path / "data")).root, tmp_path / "reports.txt"
    for _ in range(2):
        assert call(["export", str(search), "--to", f"lines={file}"]) == 0
        assert capsys.readouterr().out == f"less {file}\n"
        assert file.read_text().splitlines() == [
            *("0 200 0.5", "0 400 0.6", "0 600 0.8"),
            *("1 200 0.9", "2 200 0.4", "2 400 0.4", "2 600 0.4"),
        ]
        file.write_text(file.read_text() + "0 6")
