from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.results import open_search
from ich_ray.search import chances as module
from ich_ray.search import ledger as ledgers
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.chances import BestLogits, format_chances, write_chances
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.out_of_fold import read_logits
from ich_ray.search_records import Chance, Chances, SearchRecord
from ich_ray.statistics.metrics import average_precision
from ich_ray.storage import SearchFiles, locate
from ich_ray.trial_records import Objective
from tests.prepared import make_dataset

SPACE = {
    "name": "by-hand",
    "objective": {"metric": "average_precision", "mode": "max"},
    "budget": {"images": 300, "report_every": 100, "first_rung": 100, "reduction": 3, "min_peers": 3},
    "parameters": {"dropout": {"uniform": [0.0, 0.8]}},
}
OBJECTIVE = Objective()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """With 15 validation patients, of whom more than six have a positive slice."""
    return make_dataset(tmp_path_factory.mktemp("chances") / "data", patients=100)


def ledger_of(folder: Path, dataset: PreparedDataset) -> Ledger:
    record = SearchRecord(
        name="by-hand", space=SPACE, dataset=str(dataset.files.root), fingerprint=dataset.manifest.fingerprint,
        prevalence=0.3, seed=0, trials=4, versions={}, created=0.0,
    )  # fmt: skip
    return Ledger.create(folder, record)


def trained(ledger: Ledger, dataset: PreparedDataset, skill: float, end: str = "completed") -> int:
    """A trial whose logits are as good as `skill`, from its first report on."""
    slices = dataset.role("validation")
    number = ledger.add({"dropout": skill / 10}).number
    noise = np.random.default_rng(number).normal(0, 1, len(slices))
    logits = (skill * slices.labels + noise).astype(np.float32)
    value = average_precision(slices.labels, logits)
    best = BestLogits(ledger.files, number, OBJECTIVE, (), wanted=True)
    for images in (100, 200, 300):
        report = {"images_seen": images, "metrics": {"average_precision": value}}
        best.report(report, logits)
        verdict = None
        if images == 300 or (end != "completed" and images == 100):
            verdict = Verdict("completed") if end == "completed" else Verdict("pruned", end)
        ledger.report(number, images, report["metrics"], 1.0, logits=best.reference, end=verdict)
        if verdict:
            break
    return number


def kept(ledger: Ledger) -> list[str]:
    return sorted(path.name for path in ledger.files.logits.iterdir())


def test_the_chance_of_each_is_that_of_the_patients_drawn(
    tmp_path: Path, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(tmp_path / "s", dataset)
    for skill, end in ((6.0, "completed"), (1.0, "completed"), (6.5, "rung_100"), (1.5, "completed")):
        trained(ledger, dataset, skill, end)
    assert kept(ledger) == ["00000", "00001", "00003"]
    chances = write_chances(ledger, dataset)
    assert chances is not None
    assert {one.trial: round(one.p_best, 2) for one in chances.trials} == {0: 1.0, 1: 0.0, 3: 0.0}
    assert (chances.completed, chances.patients) == (3, 15)
    found = open_search(tmp_path / "s")
    assert found.p_best[0] == pytest.approx(1.0, abs=0.01)
    frame = found.to_frame().set_index("number")
    assert frame["p_best"].isna().tolist() == [False, False, True, False]
    assert frame["logits"][0] == found.trials[0].logits.file  # type: ignore[union-attr]
    assert call(["results", str(tmp_path / "s")]) == 0
    _, head, best, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["trial", "state", "average_precision", "best"]
    assert best.split()[3] == "100%"
    assert audit(tmp_path / "s").breached == ()


def test_a_search_that_went_on_knows_nothing_until_it_ends(tmp_path: Path, dataset: PreparedDataset) -> None:
    ledger = ledger_of(tmp_path / "s", dataset)
    for skill in (2.0, 1.0):
        trained(ledger, dataset, skill)
    assert write_chances(ledger, dataset)
    assert open_search(tmp_path / "s").p_best
    trained(ledger, dataset, 1.5)
    assert open_search(tmp_path / "s").p_best == {}
    assert write_chances(ledger, dataset)
    assert len(open_search(tmp_path / "s").p_best) == 3


def test_what_cannot_be_read_is_said_and_tells_nothing(
    tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    ledger = ledger_of(tmp_path / "s", dataset)
    for skill in (2.0, 1.0):
        trained(ledger, dataset, skill)
    assert write_chances(ledger, dataset)
    path = ledger.files.root / ledger.trials[1].logits.file  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert write_chances(ledger, dataset) is None
    assert not ledger.files.chances.exists()
    assert said[0].startswith("ranking: trial 1 cannot be compared: ")
    assert "SHA-256 must be the one in the ledger" in said[0]
    assert any("trial 1" in breach for check in audit(tmp_path / "s").breached for breach in check.breaches)


def test_one_trial_whose_logits_are_lost_is_left_out(
    tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    ledger = ledger_of(tmp_path / "s", dataset)
    for skill in (2.0, 1.0, 1.5):
        trained(ledger, dataset, skill)
    (ledger.files.root / ledger.trials[0].logits.file).unlink()  # type: ignore[union-attr]
    chances = write_chances(ledger, dataset)
    assert chances is not None
    assert {one.trial for one in chances.trials} == {1, 2}
    assert sum(one.p_best for one in chances.trials) == pytest.approx(1)
    assert len(said) == 1
    assert said[0].startswith("ranking: trial 0 cannot be compared: ")


def test_a_search_without_logits_has_no_chances(tmp_path: Path, dataset: PreparedDataset) -> None:
    ledger = ledger_of(tmp_path / "s", dataset)
    for number in range(2):
        ledger.add({"dropout": 0.1})
        ledger.report(number, 300, {"average_precision": 0.5 + number / 10}, 1.0, end=Verdict("completed"))
    assert write_chances(ledger, dataset) is None
    assert open_search(tmp_path / "s").p_best == {}
    assert "logits" not in (ledger.files.trial(0)).read_text()


def test_the_disk_holds_the_logits_of_the_best(
    tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "MOST_LOGITS", 2)
    ledger = ledger_of(tmp_path / "s", dataset)
    for skill in (3.0, 1.0, 5.0, 0.5):
        trained(ledger, dataset, skill)
    assert kept(ledger) == ["00000", "00002"]
    assert [bool(trial.logits) for trial in open_search(tmp_path / "s").trials] == [True, False, True, False]
    assert kept(Ledger.open(tmp_path / "s")) == ["00000", "00002"]
    assert audit(tmp_path / "s").breached == ()


def report(images: int, value: Any) -> dict[str, Any]:
    return {"images_seen": images, "metrics": {"average_precision": value}}


def test_the_file_is_of_the_best_report_also_after_a_resume(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path))
    logits = {images: np.full(4, images, np.float32) for images in (100, 200, 300, 400)}
    first = BestLogits(files, 7, OBJECTIVE, (), wanted=True)
    for images, value in ((100, 0.5), (200, 0.8), (300, None)):
        first.report(report(images, value), logits[images])
    assert first.reference is not None
    assert [path.name for path in files.logits_of(7).iterdir()] == [Path(first.reference.file).name]
    assert BestLogits(files, 7, OBJECTIVE, [report(100, 0.5)], wanted=True).reference is None, "two reports ago"
    assert read_logits(files, first.reference, 4)[:, 0].tolist() == [200] * 4
    history = [report(100, 0.5), report(200, 0.8)]
    again = BestLogits(files, 7, OBJECTIVE, history, wanted=True)
    assert again.reference == first.reference
    again.report(report(300, 0.7), logits[300])
    assert again.reference == first.reference
    again.report(report(400, 0.9), logits[400])
    assert again.reference is not None
    assert read_logits(files, again.reference, 4)[:, 0].tolist() == [400] * 4
    assert len([*files.logits_of(7).iterdir()]) == 2
    # dead before its checkpoint: the one before is there still, and a repeat may give other values
    back = BestLogits(files, 7, OBJECTIVE, [*history, report(300, 0.7)], wanted=True)
    assert back.reference == first.reference
    back.report(report(400, 0.75), logits[400] + 1)
    back.report(report(500, 0.74), logits[400])
    assert back.reference == first.reference
    again.report(report(500, 0.8), logits[400])
    # the file of the best report is gone, and that of another one would say something else
    assert BestLogits(files, 7, OBJECTIVE, history, wanted=True).reference is None


def test_of_a_trial_that_has_ended_one_file_stays(tmp_path: Path, dataset: PreparedDataset) -> None:
    ledger = ledger_of(tmp_path / "s", dataset)
    number = ledger.add({"dropout": 0.1}).number
    best = BestLogits(ledger.files, number, OBJECTIVE, (), wanted=True)
    for images, value in ((100, 0.5), (200, 0.6), (300, 0.7)):
        best.report(report(images, value), np.full(4, value, np.float32))
        end = Verdict("completed") if images == 300 else None
        assert len([*ledger.files.logits_of(number).iterdir()]) == min(images // 100, 2)
        ledger.report(number, images, report(images, value)["metrics"], 1.0, logits=best.reference, end=end)
    assert [path.name[:12] for path in ledger.files.logits_of(number).iterdir()] == ["000000000300"]


def test_a_network_that_says_nothing_and_a_confirmation_write_nothing(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path))
    silent = BestLogits(files, 0, OBJECTIVE, (), wanted=True)
    silent.report(report(100, 0.5), None)
    BestLogits(files, 0, OBJECTIVE, (), wanted=False).report(report(100, 0.5), np.zeros(4, np.float32))
    assert silent.reference is None
    assert not files.logits.exists()


def test_the_line_names_the_three_most_probable() -> None:
    shares = (0.05, 0.6, 0.25, 0.1)
    trials = tuple(Chance(trial=number, p_best=share) for number, share in enumerate(shares))
    told = format_chances(Chances(completed=9, patients=82, positive=39, trials=trials))
    assert told == "best of all: trial 1 60%, trial 2 25%, trial 3 10% (by 39 positive of 82 patients)"
    assert format_chances(None) == ""
