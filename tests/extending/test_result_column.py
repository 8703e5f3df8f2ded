"""A column of the results from outside: images a second of a trial, validation included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ich_ray.cli import call
from ich_ray.results import RESULT_COLUMNS, open_search
from ich_ray.trial_records import TrialResult
from tests.prepared import make_dataset
from tests.searched import make_search


def throughput(trial: TrialResult) -> float | None:
    return trial.images_seen / trial.reports[-1].elapsed_s if trial.reports else None


def test_the_results_of_a_search_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RESULT_COLUMNS, "registered", {})  # for this test alone
    RESULT_COLUMNS.register("throughput", throughput)
    search = str(make_search(tmp_path / "search", make_dataset(tmp_path / "data")).root)
    assert open_search(search).to_frame()["throughput"].tolist() == [200.0, 200.0, 200.0]
    assert call(["results", search, "--json"]) == 0
    assert [trial["throughput"] for trial in json.loads(capsys.readouterr().out)["trials"]] == [200.0, 200.0, 200.0]
    assert call(["results", search]) == 0
    _, head, best, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["trial", "state", "average_precision", "images", "seconds", "throughput", "parameters"]
    assert best.split()[:6] == ["0", "completed", "0.8000", "600", "3", "200.0000"]
