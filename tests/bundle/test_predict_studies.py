"""Studies through `predict`: what `evaluate` says of the same ones in a dataset, with and without a study head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray.bundle import batch_predict
from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.prediction import SUBTYPE_COLUMNS
from ich_ray.data.dataset import SliceSet
from ich_ray.data.study_labels import studies_of
from ich_ray.storage import locate
from tests.bundle.test_predict_series import dataset_of, make_bundle, scans, write
from tests.bundle.test_study_prediction import fitted
from tests.sequence_bundles import add_sequence

__all__ = ["scans"]

KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "highest slice": (False, {}),
    "study head": (True, {}),
    "study head, all labels": (True, {"neighbors": 1, "labels": "all"}),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with_head, parameters = request.param
    made = make_bundle(tmp_path_factory.mktemp("bundle"), **parameters)
    return add_sequence(made) if with_head else made


def predicted(bundle: Path, scans: Path, **options: Any) -> dict[str, dict[str, Any]]:
    predict(bundle, [scans], scans.parent / "out.json", by="study", **options)
    return {row["study"]: row for row in json.loads((scans.parent / "out.json").read_text())}


def in_a_dataset(bundle: Path, scans: Path) -> dict[str, list[float]]:
    """The logits of each study, `any` last."""
    files, loaded = sorted(scans.iterdir()), load_bundle(bundle)
    slices = SliceSet(dataset_of(scans.parent / "dataset", files), np.arange(len(files)))
    found = loaded.study_label_logits(slices)
    return dict(zip(studies_of(slices).names, found.logits.tolist(), strict=True))


def test_a_study_has_the_probability_of_the_same_study_in_a_dataset(bundle: Path, scans: Path) -> None:
    for number in range(5):
        write(scans, f"{number}x", 5 * number, "x", StudyInstanceUID="other")
    rows, card = predicted(bundle, scans), load_bundle(bundle).card
    logits = in_a_dataset(bundle, scans)
    assert rows.keys() == logits.keys() == {"study", "other"}
    for name, row in rows.items():
        subtypes = SUBTYPE_COLUMNS if len(card.scalings) > 1 else ()
        told = [row[column] for column in (*subtypes, "probability")]
        expected = [float(scaling(logit)) for scaling, logit in zip(card.scalings, np.array(logits[name]), strict=True)]
        assert told == pytest.approx(expected, abs=1e-6)
    assert (rows["study"]["answering_series"], rows["other"]["answering_series"]) == ("a", "x")
    assert [part.split()[0] for part in rows["study"]["other_series"].split(", ")] == ["b", "c"]


def test_what_is_fitted_to_studies_decides(bundle: Path, scans: Path) -> None:
    card = read_card(locate(bundle))
    studies = fitted(study_f2=0.7)
    of_any = studies.labels["any"]
    held = studies.model_copy(update={"labels": dict.fromkeys(card.parameters.predicted_labels, of_any)})
    write_card(locate(bundle), card.model_copy(update={"studies": held}))
    try:
        row = predicted(bundle, scans)["study"]
    finally:
        write_card(locate(bundle), card)
    probability = float(of_any.scaling(np.array(in_a_dataset(bundle, scans)["study"][-1])))
    assert row["probability"] == pytest.approx(probability, abs=1e-6)
    assert row["decision"] == ("positive" if probability >= 0.7 else "negative")
    assert row["operating_point"] == "study_f2"
    assert row["file_probability"] != pytest.approx(probability, abs=1e-3)


def test_workers_of_ray_data_say_the_same(bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray: what travels is a table, as there."""
    here = predicted(bundle, scans)
    order = batch_predict._Order(str(bundle), "f2", None, for_studies=True)

    def through_tables(self: Any, parts: Any) -> Any:
        worker = batch_predict._Worker(order)
        for part in parts:
            yield batch_predict.from_table(worker(batch_predict.as_item(part)), self.row_kind)

    monkeypatch.setattr(batch_predict.Predictor, "rows", through_tables)
    there = predicted(bundle, scans)
    assert there.keys() == here.keys()
    for name, row in there.items():
        assert row == {column: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
                       for column, value in here[name].items()}  # fmt: skip


def test_slices_with_a_probability_of_1_still_make_different_studies(scans: Path, tmp_path: Path) -> None:
    """By a scaling that saturates, as small temperatures do; that of studies does not."""
    for number in range(5):
        write(scans, f"{number}x", 5 * number, "x", StudyInstanceUID="other")
    bundle = make_bundle(tmp_path / "bundle")
    card = read_card(locate(bundle))
    saturated = {"studies": fitted(study_f2=0.7), "temperature": 1e-3, "bias": 900.0}
    write_card(locate(bundle), card.model_copy(update=saturated))
    rows, logits = predicted(bundle, scans), in_a_dataset(bundle, scans)
    assert {row["file_probability"] for row in rows.values()} == {1.0}
    for name, row in rows.items():
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-logits[name][-1] / 2 - 1)), abs=1e-6)
    assert rows["study"]["probability"] != rows["other"]["probability"]
