"""Headers of all inputs first: series told apart, judged, and compared with what trained the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray import cli, progress
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card import Card
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.input_survey import Input, SeriesTable, read_facts, read_facts_ahead, survey_inputs
from ich_ray.bundle.training_data import TrainingData
from ich_ray.storage import locate
from tests.bundle.test_training_data import THICK
from tests.ct.files import ABSENT, head, make
from tests.searched import calibrated_bundle

THIN = {"SliceThickness": 0.6, "ConvolutionKernel": "B70\\3"}


def write_series(folder: Path, name: str, slices: int = 6, step_mm: float = 5, **tags: Any) -> list[Input]:
    """Slices one behind the other, 250 mm wide and 5 mm thick."""
    folder.mkdir(exist_ok=True)
    usual = {"PixelSpacing": [250 / 64] * 2, "SliceThickness": 5, "ConvolutionKernel": "H30s"}
    files = []
    for number in range(slices):
        ids = {"SOPInstanceUID": f"{name}.{number}", "SeriesInstanceUID": name, "StudyInstanceUID": "study"}
        place = {"ImagePositionPatient": [-125.0, -125.0, step_mm * number]}
        files.append(folder / f"{name}.{number}.dcm")
        files[-1].write_bytes(make(head(seed=number), **{**ids, **place, **usual, **tags}))
    return [Input(str(file)) for file in files]


def coronal(number: int) -> dict[str, Any]:
    return {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "SOPInstanceUID": f"coronal.{number}"}


def test_series_are_told_apart_whatever_the_order(tmp_path: Path) -> None:
    """One UID in two studies is two series; slices without a series are each their own; no header, no series."""
    one, two = write_series(tmp_path, "a", 2), write_series(tmp_path, "b", 2, StudyInstanceUID="other")
    same = write_series(tmp_path / "x", "a", 1, StudyInstanceUID="other")
    alone = write_series(tmp_path, "c", 2, SeriesInstanceUID=ABSENT)
    (tmp_path / "page").write_text("<html>")
    inputs = [one[0], two[0], Input(str(tmp_path / "page")), alone[0], one[1], same[0], alone[1], two[1]]
    table = SeriesTable.of_facts([read_facts(inputs[:3]), read_facts(inputs[3:])])
    assert table.series.tolist() == [
        table.series[0],
        table.series[1],
        -1,
        3,
        table.series[0],
        table.series[5],
        4,
        table.series[1],
    ]
    assert {*table.series[[0, 1, 5]].tolist()} == {0, 1, 2}
    assert [members.tolist() for members in table.members()][3:] == [[3], [6]]
    assert sorted(members.tolist() for members in table.members()[:3]) == [[0, 4], [1, 7], [5]]
    assert table.named.tolist() == [True, True, False, False, True, True, False, True]


def test_the_look_of_a_series(tmp_path: Path) -> None:
    inputs = write_series(tmp_path, "a", ConvolutionKernel=["B70", "3"], SliceThickness=0.625, step_mm=0.5)
    table = SeriesTable.of_facts([read_facts(inputs[::-1])])
    look = table.look(np.arange(6))
    assert (look.thickness_mm, look.slice_spacing_mm, look.pixel_spacing_mm) == (0.625, 0.5, 250 / 64)
    assert (look.kernel, look.matrix) == ("B70 3", "64x64")
    assert table.position_mm.tolist() == [2.5, 2.0, 1.5, 1.0, 0.5, 0.0]


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ich_ray.bundle.input_survey._AT_ONCE", 2)
    inputs = [given for number in range(12) for given in write_series(tmp_path, f"{number:02d}", 2)]
    tables = [*read_facts_ahead(inputs)]
    assert [table["series"].to_pylist() for table in tables] == [[f"{number:02d}"] * 2 for number in range(12)]


def test_series_are_judged_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two series of two slices at one place, one of others, and slices without a series."""
    inputs = [
        *write_series(tmp_path, "a", 2, step_mm=0),
        *write_series(tmp_path, "b", 3),
        *write_series(tmp_path, "c", 2, step_mm=0, SeriesInstanceUID=ABSENT),
        *write_series(tmp_path, "d", 2, step_mm=0),
    ]
    table = SeriesTable.of_facts([read_facts(inputs)])
    repeated = [("repeated_position",)] * 2
    for at_once in (1, 3, 100):
        monkeypatch.setattr("ich_ray.bundle.input_survey._JUDGED_AT_ONCE", at_once)
        assert [judgment.flags for judgment in table.judged()] == [*repeated, *[()] * 5, *repeated]


def test_what_only_its_series_shows_is_left_out(tmp_path: Path) -> None:
    """Images that call themselves axial and move within their plane, among slices of the same study."""
    sliding = [
        write_series(tmp_path / str(number), "b", 1, ImagePositionPatient=[-125.0, 10.0 * number, 0.0])[0]
        for number in range(6)
    ]
    inputs = [*write_series(tmp_path, "a"), *sliding]
    found = survey_inputs(inputs, [read_facts(inputs)], THICK)
    assert [given.reason for given in found.inputs] == [""] * 6 + ["not_axial"] * 6
    assert {given.flags for given in found.inputs[6:]} == {""}, "they are compared with nothing"


def test_an_input_without_a_header_stays_as_it_is(tmp_path: Path) -> None:
    inputs = [Input(str(tmp_path / "nothing")), Input("link", "path_escape")]
    assert survey_inputs(inputs, [read_facts(inputs)], THICK).inputs == inputs


def test_a_lone_file_has_a_series_of_its_own(tmp_path: Path) -> None:
    (given,) = inputs = write_series(tmp_path, "a", 1, SeriesInstanceUID=ABSENT, StudyInstanceUID=ABSENT, **THIN)
    found = survey_inputs(inputs, [read_facts(inputs)], THICK)
    assert found.inputs == [given._replace(flags="far_kernel,far_matrix,far_spacing,far_thickness")]
    assert "1 of 1 studies are unlike the training data: far_kernel 1 (kernel B70 3, trained with" in found.notes[-1]


def test_series_unlike_the_training_data_are_flagged_and_counted_by_study(tmp_path: Path) -> None:
    """Two reconstructions of one study, of which one is thin, and a study like the training data."""
    like = TrainingData(slices=9, thickness_mm=THICK.thickness_mm, kernels=THICK.kernels)
    inputs = [
        *write_series(tmp_path, "a", 2),
        *write_series(tmp_path, "b", 3, **THIN),
        *write_series(tmp_path, "c", 2, StudyInstanceUID="other"),
    ]
    found = survey_inputs(inputs, [read_facts(inputs)], like)
    assert [given.flags for given in found.inputs] == [""] * 2 + ["far_kernel,far_thickness"] * 3 + [""] * 2
    assert found.notes[-1] == (
        "1 of 2 studies are unlike the training data: far_kernel 1 (kernel B70 3, trained with H30s, H31s, others); "
        "far_thickness 1 (slice thickness in mm 0.6, trained with 5)"
    )


def test_a_card_that_does_not_say_how_it_was_trained_says_so_once(tmp_path: Path) -> None:
    inputs = write_series(tmp_path, "a", **THIN)
    found = survey_inputs(inputs, [read_facts(inputs)], None)
    assert [given.flags for given in found.inputs] == [""] * 6
    (said,) = found.notes
    assert said.startswith("the card of the bundle does not say how the slices that trained it were taken: ")
    older = THICK.model_copy(update={"thickness_mm": None, "kernels": None})
    (said, *_) = survey_inputs(inputs, [read_facts(inputs)], older).notes
    assert said == (
        "the training data of the bundle do not say slice thickness in mm, kernel: what is unlike them is not flagged"
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_bundle(tmp_path_factory.mktemp("home"))


@pytest.fixture
def predicted(bundle: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    def run(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        out = tmp_path / "out.json"
        progress.show()
        try:
            found = cli.call(["predict", str(bundle), str(tmp_path / "scans"), "--out", str(out), *arguments])
        finally:
            progress.show(False)
        assert found == code
        rows: list[dict[str, Any]] = json.loads(out.read_text())
        return rows

    return run


def test_a_reformat_is_not_predicted_and_a_bleeding_counts_once(
    predicted: Callable[..., list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three reconstructions of one study, and a coronal one that is left out."""
    scans = tmp_path / "scans"
    for name, tags in (("a", {}), ("b", {}), ("c", THIN)):
        write_series(scans, name, 4, **tags)
    write_series(scans, "d", 3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    rows = predicted()
    assert [row["reason"] for row in rows] == [""] * 12 + ["not_axial"] * 3
    assert [row["series"] for row in rows[:12]] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    positive = [sum(row["decision"] == "positive" for row in rows if row["series"] == name) for name in "abc"]
    capsys.readouterr()
    study, *excluded = predicted("--by", "study")
    assert (study["slices"], study["positive_slices"]) == (12, sum(positive))
    assert (study["series"], study["positive_series"]) == (3, sum(map(bool, positive)))
    assert study["most_positive_slices"] == max(positive)
    assert study["probability"] == max(row["probability"] for row in rows[:12])
    assert {"far_matrix", "not_512", "thin"} <= {*study["flags"].split(",")}
    assert [(row["reason"], row["series"], row["slices"]) for row in excluded] == [("not_axial", 0, 0)] * 3
    said = capsys.readouterr()
    assert "1 studies positive, 0 rejected, 3 excluded (not_axial 3), 1 flagged: far_matrix 1, not_512 1" in said.out
    assert "the training data of the bundle do not say slice thickness in mm" in said.err


def test_inputs_with_a_fault_or_without_any_slice_end_with_another_code(
    predicted: Callable[..., list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "scans", "d", 2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    predicted(code=3)
    assert "2 inputs: 0 of 0 slices positive, 0 rejected, 2 excluded (not_axial 2)" in capsys.readouterr().out
    write_series(tmp_path / "scans", "a", 1)
    predicted(code=0)
    (tmp_path / "scans" / "note.txt").write_text("no slice")
    predicted(code=3)
    assert "1 rejected, 2 excluded (not_axial 2, not_dicom 1)" in capsys.readouterr().out


def test_a_bundle_says_what_is_unlike_its_training_data(
    bundle: Path, predicted: Callable[..., list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "scans", "a", **THIN)
    write_series(tmp_path / "scans", "b", StudyInstanceUID="other")
    card = read_card(locate(bundle))
    assert card.training_data is not None
    trained = card.training_data.model_copy(update={"thickness_mm": THICK.thickness_mm})
    try:
        write_card(locate(bundle), card.model_copy(update={"training_data": trained}))
        rows = predicted()
        far = ["far_thickness" in row["flags"].split(",") for row in rows]
        assert far == [True] * 6 + [False] * 6
        said = capsys.readouterr()
        assert "2 of 2 studies are unlike the training data: far_matrix 2" in said.err
        assert "far_thickness 1 (slice thickness in mm 0.6, trained with 5)" in said.err
        assert "12 flagged: far_matrix 12, not_512 12, far_thickness 6, thin 6" in said.out
        direct = load_bundle(bundle).predict([tmp_path / "scans"])
        assert [row.flags for row in direct] == [row["flags"] for row in rows]
    finally:
        write_card(locate(bundle), card)


def test_a_card_without_training_data_is_read(bundle: Path) -> None:
    card = read_card(locate(bundle)).model_dump(mode="json")
    del card["training_data"]
    assert Card.model_validate(card).training_data is None
