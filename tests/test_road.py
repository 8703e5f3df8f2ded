"""The whole road through the command line, as a user walks it: synthetic patients, then the real slices."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import ich_ray
from ich_ray import cli
from ich_ray.data.identities import read_identities
from ich_ray.refit.confirmation import Confirmation
from ich_ray.storage import SearchFiles, locate, read_json
from tests.data.real import real_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
DEMO = str(Path(__file__).parent.parent / "search_spaces" / "demo.yaml")


def same_probabilities(search: Path, images: Path) -> None:
    """`predict` on the DICOM files gives what the evaluation saw."""
    files = SearchFiles(locate(search))
    evaluated = pq.read_table(str(files.predictions)).to_pylist()
    bundle = ich_ray.load_bundle(files.bundle)
    dataset = ich_ray.PreparedDataset.open(ich_ray.open_search(search).record.dataset)
    behind = {row.slice_id: row for row in read_identities(dataset) if not row.reason}
    rows = bundle.predict([images / behind[row["slice_id"]].path for row in evaluated])
    assert [row.slice_id for row in rows] == [behind[row["slice_id"]].uid for row in evaluated]
    assert [row.probability for row in rows] == pytest.approx([row["probability"] for row in evaluated], abs=1e-6)


def test_the_demo_finds_a_model_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["demo", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for start in (
        "chosen trial",
        "selection score",
        "confirmed",
        "operating point",
        "on test patients",
        "report",
        "bundle",
    ):
        assert any(line.startswith(start) for line in said.splitlines()), start
    found = ich_ray.open_search(tmp_path / "search")
    assert len(found.trials) >= 8
    assert found.count("pruned") >= 1
    assert found.count("completed") >= 2
    assert found.count("running") == 0
    assert {trial.parameters["architecture"] for trial in found.trials} == {"plain_cnn", "mobilenet_v3_small"}
    searched = {name for trial in found.trials for name in trial.parameters}
    assert {"batch_size", "learning_rate", "decay", "dropout", "optimizer"} <= searched
    confirmation = Confirmation.model_validate(read_json(found.files.confirmation))
    assert [candidate.trial for candidate in confirmation.candidates] == [trial.number for trial in found.ranked()[:2]]
    assert all(None not in candidate.values and len(candidate.values) == 2 for candidate in confirmation.candidates)
    card = read_json(found.files.bundle / "card.json")
    assert card["search"]["trial"] == confirmation.chosen
    assert 0.6 <= card["test"]["metrics"]["average_precision"]["value"] < 1
    assert card["openings"] == 1
    assert {*card["sequence"]["figures"]["validation"]} == {"none", "smoothing", "sequence"}
    assert cli.call(["audit", str(tmp_path / "search" / "final" / "sequence")]) == 0
    capsys.readouterr()
    same_probabilities(tmp_path / "search", tmp_path / "dicom" / "stage_2_train")

    started = time.monotonic()
    assert cli.call(["demo", "--out", str(tmp_path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["best_trial"]["number"] == found.best().number
    assert again["chosen_trial"]["number"] == confirmation.chosen
    assert again["confirmation"] == confirmation.model_dump(mode="json")
    assert again["card"]["openings"] == 1, "a second run must not open the test patients again"
    assert time.monotonic() - started < 120, "finished stages are skipped"


def test_real_slices_end_in_a_report_that_says_they_are_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = real_data() / "rsna-mini"
    images, labels, out = mini / "stage_2_train", mini / "stage_2_train.csv", str(tmp_path / "out")
    arguments = ["run", str(images), "--labels", str(labels), "--space", DEMO, "--out", out, "--trials", "4"]
    assert cli.call(arguments) == 0
    assert "63 positives are too few to rank models" in capsys.readouterr().out
    dataset = ich_ray.PreparedDataset.open(f"{out}/dataset", verify=True)
    assert read_json(locate(out) / "search" / "final" / "bundle" / "card.json").get("sequence") is None  # lone slices
    manifest = dataset.manifest
    assert manifest.listed == 277 == manifest.accepted + manifest.rejected + manifest.duplicate + manifest.excluded
    assert manifest.labels["any"] == 63
    assert sum(flags != "" for flags in dataset.column("flags")) > 90
    page = Path(f"{out}/search/final/report.html").read_text()
    assert "63 positives are too few to rank models" in page
    same_probabilities(tmp_path / "out" / "search", images)
    table = tmp_path / "predictions.csv"
    assert cli.call(["predict", f"{out}/search/final/bundle", str(mini / "unlabelled"), "--out", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 1 + 36
