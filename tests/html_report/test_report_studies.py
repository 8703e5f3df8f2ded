"""The part of the report by study: missed and false studies first, their slices in order, and what decided."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.assess.sequence_change import ChangedFigure
from ich_ray.data.dataset import SliceSet
from ich_ray.errors import IntegrityError
from ich_ray.html_report.inputs import Inputs, gather
from ich_ray.html_report.page import render
from ich_ray.html_report.study_strips import pick_studies, strips
from ich_ray.storage import locate, read_json, write_json
from tests.examined import half_bleeding, with_columns
from tests.html_report.test_report import Page
from tests.prepared import make_dataset
from tests.searched import make_bundle, make_search


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """An evaluated search of 24 test studies, 12 with a bleeding, whose logits overlap; places run downward."""
    folder = tmp_path_factory.mktemp("home")
    dataset = half_bleeding(make_dataset(folder / "dataset", patients=160))
    places = -np.asarray(dataset.column("position_mm"), np.float32)
    dataset = with_columns(dataset, position_mm=places)
    files = make_search(folder / "search", dataset)
    make_bundle(files, dataset)
    noise = np.random.default_rng(1).normal(-1, 1, len(dataset)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ich_ray.assess.evaluate.RESAMPLES", 100)
        patch.setattr(
            "ich_ray.bundle.bundle.predict_logits",
            lambda network, slices, *_: noise[slices.rows] + 1.2 * slices.dataset.label("subdural")[slices.rows],
        )
        calibrate(files.root)
        evaluate(files.root)
    return gather(files.root)


@pytest.fixture(scope="module")
def page(inputs: Inputs) -> Page:
    return Page(render(inputs))


def test_missed_and_false_studies_come_first(page: Page, inputs: Inputs) -> None:
    at = [page.text.index(title) for title in ("Missed studies", "False studies", "Flagged, and", "Not flagged, and")]
    assert at == sorted(at)
    assert at[0] > page.text.index("By study")
    titles = [title for title, _, _ in strips(inputs)]
    assert [title.split(":")[0] for title in titles[:2]] == ["Missed studies", "False studies"]
    assert inputs.evaluation is not None
    assert inputs.evaluation.studies is not None
    point = inputs.evaluation.studies.operating_points["study_f2"].confusion
    assert [number for _, number, _ in strips(inputs)] == [point.fn, point.fp, point.tp, point.tn]


def test_figures_and_curves_of_studies_stand_on_the_page(page: Page) -> None:
    assert {name for name in page.figures if name.startswith("study ")} == {
        "study precision-recall", "study roc", "study reliability", "study histogram"
    }  # fmt: skip
    assert "24 studies of 24 test patients are measured, 12 with haemorrhage" in page.text
    assert "of studies with haemorrhage, the share flagged" in page.text
    assert "Operating point study_f2: flag a study at" in page.text


def test_a_strip_runs_along_the_head_and_shows_what_decided(inputs: Inputs) -> None:
    assert inputs.studies is not None
    assert inputs.predictions is not None
    assert inputs.dataset is not None
    strip = next(strip for _, _, shown in strips(inputs) for strip in shown)
    row = int(strip.row)
    of_study = np.flatnonzero(inputs.predictions.patients == inputs.studies.patients[row])
    upward = inputs.predictions.probabilities[of_study][::-1]  # places fall with the row
    assert strip.line == " ".join(
        f"{x:g},{round(100 * (1 - p), 1):g}" for x, p in zip((75, 225, 375, 525), upward, strict=True)
    )
    assert (strip.slices, strip.others, strip.alone, strip.change) == ("4", "", "", "")
    highest = np.argsort(-upward)[:3]
    assert [shot.place for shot in strip.thumbnails] == [f"slice {place + 1} of 4" for place in highest]
    assert [shot.probability for shot in strip.thumbnails] == [f"{upward[place]:.3f}" for place in highest]
    assert strip.bleeding == ([225, 375] if strip.truth == "haemorrhage" else [])
    assert strip.thumbnails[0].image.startswith("data:image/png;base64,")


def test_no_identifier_of_a_study_stands_on_the_page(inputs: Inputs) -> None:
    assert inputs.studies is not None
    html = re.sub(r"base64,[^\"]*", "", render(inputs).split('<section id="studies">')[1].split("</section>")[0])
    for names in (inputs.studies.studies, inputs.studies.patients, inputs.predictions.slice_ids):  # type: ignore[union-attr]
        assert not any(str(name) in html for name in names)


def test_the_sequence_model_is_a_thin_line_and_a_table(inputs: Inputs) -> None:
    assert inputs.predictions is not None
    assert inputs.evaluation is not None
    change = {"study_roc_auc": ChangedFigure(without=0.7, with_sequence=0.75, difference=0.05, low=0.01, high=0.09)}
    alone = replace(inputs.predictions, without_sequence=inputs.predictions.probabilities / 2)
    changed = replace(
        inputs, predictions=alone, evaluation=inputs.evaluation.model_copy(update={"sequence_change": change})
    )
    strip = next(strip for _, _, shown in strips(changed) for strip in shown)
    assert strip.alone
    assert strip.change.startswith("its most probable slice without the sequence model 0.")
    text = Page(render(changed)).text
    assert "What the sequence model changed" in text
    assert "The thin line is what the network says without its sequence model, calibrated by itself." in text
    older = Page(render(replace(changed, predictions=inputs.predictions))).text
    assert "The thin line" not in older
    assert "ROC AUC, by study 0.700 0.750 0.050 0.010 to 0.090" in text


def test_without_studies_the_page_says_why(inputs: Inputs, tmp_path: Path) -> None:
    shutil.copytree(str(inputs.search.files.root), tmp_path / "search")
    file = locate(tmp_path / "search" / "final" / "evaluation.json")
    found = read_json(file)
    del found["studies"]
    note = "By study: no figures, as the bundle was calibrated without studies; run `ich-ray calibrate` again."
    write_json(file, {**found, "notes": [*found["notes"], note]})
    assert f"By study {note}" in Page(render(gather(tmp_path / "search"))).text


@pytest.mark.parametrize(
    ("column", "values"), [("probability", [2.0]), ("label", [7]), ("probability", [float("nan")])]
)
def test_a_damaged_table_of_studies_is_refused(
    inputs: Inputs, tmp_path: Path, column: str, values: list[object]
) -> None:
    shutil.copytree(str(inputs.search.files.root), tmp_path / "search")
    file = tmp_path / "search" / "final" / "studies.parquet"
    table = pq.read_table(file)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values * len(table))), file)
    with pytest.raises(IntegrityError, match=r"studies.parquet: .* remove the file and evaluate again"):
        gather(tmp_path / "search")
    pq.write_table(table.slice(1), file)
    with pytest.raises(IntegrityError, match=r"studies.parquet"):
        gather(tmp_path / "search")


def test_studies_are_picked_by_how_sure_the_model_was() -> None:
    labels = np.array([1, 1, 0, 0, np.nan, 1, 0])
    probabilities = np.array([0.2, 0.1, 0.9, 0.8, 0.99, 0.7, 0.3])
    assert pick_studies(labels, probabilities, 0.5) == {
        "miss": [1, 0], "false alarm": [2, 3], "right positive": [5], "right negative": [6]
    }  # fmt: skip
    assert [len(places) for places in pick_studies(np.ones(20), np.zeros(20), 0.5).values()] == [8, 0, 0, 0]


def test_only_the_series_that_answers_is_drawn(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_two(slices: SliceSet, known: object) -> np.ndarray:
        return np.arange(len(slices)) % 4 < 2

    monkeypatch.setattr("ich_ray.html_report.study_strips.answering_series", first_two)
    strip = next(strip for _, _, shown in strips(inputs) for strip in shown)
    assert (strip.slices, strip.others, len(strip.thumbnails)) == ("2", ", 2 more in other series", 2)
