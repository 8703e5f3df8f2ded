from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from upath import UPath

import ich_ray
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.results import RESULT_COLUMNS, SearchResult, best_first, open_search
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.trial_records import CheckpointReference, Objective, Report, TrialResult
from ich_ray.usage import ReportUsage, Usage
from tests.records import make_record

BEST = {"max": 2, "min": 0}


def search(folder: Path, objective: dict[str, str] | None = None) -> SearchResult:
    """Completed with 0.3 and 0.5, pruned with 0.9 after less, failed, running."""
    ledger = Ledger.create(folder / "s", make_record(space={"objective": objective} if objective else {}))
    metric = ledger.record.objective.metric
    ends = [("completed", 0.3), ("pruned", 0.9), ("completed", 0.5), ("failed", math.nan)]
    for number, (state, value) in enumerate(ends):
        ledger.add({"dropout": number / 10, "optimizer": "adam"})
        ledger.report(number, 100, {metric: value, "f2": 0.1}, 1.0)
        if state != "pruned":
            ledger.report(number, 200, {metric: value - 0.1 if metric != "log_loss" else value + 0.1, "f2": 0.2}, 2.0)
        ledger.finish(number, Verdict(state, "why"))  # type: ignore[arg-type]
    ledger.add({"dropout": 0.5, "optimizer": "sgd", "momentum": 0.9})
    return open_search(folder / "s")


@pytest.mark.parametrize("objective", [None, {"metric": "log_loss", "mode": "min"}])
def test_the_best_is_the_best_report_of_completed_trials(tmp_path: Path, objective: dict[str, str] | None) -> None:
    found = search(tmp_path, objective)
    best = found.best()
    assert best.number == BEST[found.objective.mode]
    assert best.images_seen == 200
    assert best.metrics == {found.objective.metric: 0.5 if objective is None else 0.3, "f2": 0.1}
    assert best.best_report is not None
    assert best.best_report.images_seen == 100
    order = [trial.number for trial in found.ranked()]
    assert order == ([2, 0, 1, 3, 4] if objective is None else [0, 2, 1, 3, 4])
    assert [found.count(state) for state in ("completed", "pruned", "failed", "running")] == [2, 1, 1, 1]


def test_a_search_without_a_completed_trial_says_so(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record())
    ledger.add({})
    ledger.report(0, 100, {"average_precision": 0.9}, 1.0, end=Verdict("pruned", "rung_100"))
    with pytest.raises(IchRayError) as caught:
        open_search(tmp_path / "s").best()
    assert "the best trial needs a completed one, got none (0 running, 1 pruned, 0 failed)" in str(caught.value)


def test_a_frame_carries_every_trial(tmp_path: Path) -> None:
    frame = search(tmp_path).to_frame()
    assert list(frame["number"]) == [0, 1, 2, 3, 4]
    assert list(frame["state"]) == ["completed", "pruned", "completed", "failed", "running"]
    assert list(frame["param_dropout"]) == [0.0, 0.1, 0.2, 0.3, 0.5]
    assert frame["average_precision"].isna().tolist() == [False, False, False, True, True]
    assert frame["param_momentum"].isna().tolist() == [True, True, True, True, False]
    assert list(frame["images_seen"]) == [200, 100, 200, 200, 0]
    assert Ledger.create(tmp_path / "empty", make_record()).files.search.exists()
    assert len(open_search(tmp_path / "empty").to_frame()) == 0


def test_a_column_may_not_take_the_name_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RESULT_COLUMNS, "registered", {"average_precision": id})
    found = search(tmp_path)
    with pytest.raises(ConfigError, match="a name must be free, got average_precision, which the results have"):
        found.to_frame()


def test_a_frame_leaves_no_field_of_the_records_out(tmp_path: Path) -> None:
    found = search(tmp_path)
    reference = CheckpointReference(file="checkpoints/00004/a.safetensors", sha256="a" * 64, images_seen=100)
    running = found.trials[4].model_copy(update={"checkpoint": reference, "where": "host:1", "cost_gpu_s": 2.5})
    found.trials = (*found.trials[:4], running)
    trials, reports = found.to_frame(), found.to_frame(reports=True)
    fields = TrialResult.model_fields.keys() - {"parameters"} | {"param_dropout", "param_optimizer", "param_momentum"}
    assert fields <= set(trials.columns)
    own = Report.model_fields.keys() - {"metrics", "usage"} | ReportUsage.model_fields.keys()
    assert set(reports.columns) == own | {"number", "average_precision", "f2"}
    assert vars(Usage()).keys() <= set(trials.columns)
    assert trials.attrs["search"] == found.record.model_dump(mode="json") == reports.attrs["search"]
    last = trials.iloc[4]
    assert (last["checkpoint"], last["checkpoint_sha256"], last["checkpoint_images_seen"]) == (
        "checkpoints/00004/a.safetensors", "a" * 64, 100,
    )  # fmt: skip
    assert (last["where"], last["cost_gpu_s"], last["objective"], last["mode"]) == (
        "host:1", 2.5, "average_precision", "max",
    )  # fmt: skip
    assert trials["value"].tolist()[:3] == [0.3, 0.9, 0.5]
    assert trials["seed"].tolist() == [trial.seed for trial in found.trials]
    rows = [(0, 100), (0, 200), (1, 100), (2, 100), (2, 200), (3, 100), (3, 200)]
    assert list(zip(reports["number"], reports["images_seen"], strict=True)) == rows
    assert reports["average_precision"].tolist()[:5] == pytest.approx([0.3, 0.2, 0.9, 0.5, 0.4])
    assert reports["time"].tolist() == [report.time for trial in found.trials for report in trial.reports]


def test_a_frame_says_what_trials_and_reports_took(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record())
    for measured in (True, False):
        number = ledger.add({}).number
        for images_seen, rate in ((100, 50.0), (300, 100.0)):
            usage = (
                ReportUsage(images_per_s=rate, validation_s=0.5, peak_memory_bytes=images_seen) if measured else None
            )
            ledger.report(number, images_seen, {"average_precision": 0.5}, 1.0, usage=usage)
    found = open_search(tmp_path / "s")
    trials, reports = found.to_frame(), found.to_frame(reports=True)
    assert trials.loc[0, ["images_per_s", "training_s", "validation_s", "peak_memory_bytes"]].tolist() == [
        75,
        4,
        1,
        300,
    ]
    assert reports["images_per_s"].tolist()[:2] == [50.0, 100.0]
    assert trials["images_per_s"].isna().tolist() == [False, True]
    assert reports["validation_s"].isna().tolist() == [False, False, True, True]
    assert found.usage.images_per_s == 75.0
    assert "usage" in found.files.trial(0).read_text()
    assert "usage" not in found.files.trial(1).read_text()


def test_a_search_is_read_from_object_storage(tmp_path: Path) -> None:
    search(tmp_path)
    for path in (tmp_path / "s").rglob("*.json"):
        (UPath("memory://results") / str(path.relative_to(tmp_path / "s"))).write_bytes(path.read_bytes())
    found = open_search("memory://results")
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3, 4]
    assert found.best().number == 2


@pytest.mark.parametrize(("mode", "numbers"), [("max", [2, 0, 3, 1]), ("min", [1, 0, 3, 2])])
def test_of_trials_that_are_equally_good_the_first_is_best(mode: Literal["max", "min"], numbers: list[int]) -> None:
    objective = Objective(mode=mode)
    trials = [
        TrialResult(
            number=number,
            objective=objective,
            parameters={},
            reports=(Report(images_seen=1, metrics={"average_precision": value}, elapsed_s=0, time=0),),
        )
        for number, value in ((3, 0.5), (1, -0.1), (0, 0.5), (2, 0.7))
    ]
    assert [trial.number for trial in best_first(trials, objective)] == numbers


def test_trials_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    search(tmp_path)
    folder = tmp_path / "s" / "trials"
    late = json.loads((folder / "00000.json").read_text()) | {"number": 100_000}
    (folder / "100000.json").write_text(json.dumps(late))
    (folder / ".00001.json.0badf00d.tmp").write_text("half a fi")
    assert [trial.number for trial in open_search(tmp_path / "s").trials] == [0, 1, 2, 3, 4, 100_000]


def test_no_search_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a search holds search\.json, got none; check the path"):
        open_search(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", '{"number": -1}', '{"number": 1, "parameters": {}, "colour": 1}', "[]"])
def test_a_damaged_ledger_is_told(tmp_path: Path, damage: str) -> None:
    search(tmp_path)
    (tmp_path / "s" / "trials" / "00001.json").write_text(damage)
    with pytest.raises(IntegrityError, match=r"restore the file"):
        open_search(tmp_path / "s")


@pytest.mark.parametrize(("name", "denied"), [("exists", ""), ("iterdir", "trials"), ("open", "trials/00001.json")])
def test_what_nobody_may_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, denied: str) -> None:
    search(tmp_path)
    real, closed = getattr(Path, name), tmp_path / "s" / denied

    def guarded(self: Path, *arguments: Any, **keys: Any) -> Any:
        if self == closed or (name == "exists" and closed in self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **keys)

    monkeypatch.setattr(Path, name, guarded)
    with pytest.raises(ConfigError, match=f"{denied}.*: must be .*, got permission denied; (choose|let this user)"):
        open_search(tmp_path / "s")


def test_the_package_opens_searches(tmp_path: Path) -> None:
    search(tmp_path)
    found = ich_ray.open_search(str(tmp_path / "s"))
    assert repr(found) == f"SearchResult({str(tmp_path / 's')!r}, 5 trials)"
