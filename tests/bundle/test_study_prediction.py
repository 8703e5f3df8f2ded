"""Rows of slices gathered by study: which series answers, what is counted, and what stands beside it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card import Card
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.input_survey import SeriesTable, read_facts
from ich_ray.bundle.logit_scaling import LogitScaling
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.bundle.prediction import Prediction
from ich_ray.bundle.study_calibration import StudyCalibration, StudyScaling
from ich_ray.bundle.study_decision import StudyDecision
from ich_ray.bundle.study_prediction import StudyPrediction, StudyRows
from ich_ray.errors import ConfigError
from ich_ray.storage import locate
from tests.bundle.test_input_survey import THIN, write_series
from tests.bundle.test_training_data import THICK
from tests.searched import calibrated_bundle

HALF = StudyDecision("f2", 0.5, "f2", (LogitScaling(),))


def test_studies_by_hand() -> None:
    rows = [
        Prediction("a", study="s", probability=0.2, decision="negative"),
        Prediction("b", study="t", probability=0.1, decision="negative"),
        Prediction("c", study="s", probability=0.7, decision="positive"),
        Prediction("d", probability=0.6, decision="positive"),
        Prediction("e", reason="not_ct"),
        Prediction("e", reason="not_ct"),
        Prediction("f", study="s", probability=0.5, decision="positive"),
    ]
    again = Prediction("g", slice_id="1", study="u", probability=0.1, decision="negative")
    rows += [again, replace(again, file="h"), replace(again, file="i", probability=0.8, decision="positive"),
             replace(again, file="j", slice_id="2"), replace(again, file="k", study="v")]  # fmt: skip
    studies = StudyRows(HALF)
    studies.add(rows[:3])
    studies.add(rows[3:])
    told = [(row.study, row.slices, row.positive_slices, row.probability, row.file) for row in studies.rows()]
    assert told == [("s", 3, 2, 0.7, "c"), ("t", 1, 0, 0.1, "b"), ("", 1, 1, 0.6, "d"), ("", 0, 0, None, "e"),
                    ("u", 2, 1, 0.8, "i"), ("v", 1, 0, 0.1, "k")]  # fmt: skip
    assert studies.repeated == 2


def test_a_bleeding_that_stands_in_four_reconstructions_counts_once() -> None:
    """By series: 2, 3, 3 and 0 positive slices; one of the last is also sent under another name."""
    rows = [
        Prediction(
            f"{series}{place}",
            slice_id=f"{series}{place}",
            study="s",
            probability=0.5,
            decision="positive" if place < positive else "negative",
            series=f"e{series}",
            flags=("", "thin,tilt", "", "lossy")[series],
        )
        for series, positive in enumerate((2, 3, 3, 0))
        for place in range(5)
    ]
    studies = StudyRows(HALF)
    studies.add(rows[:7])
    studies.add([*rows[7:], replace(rows[-1], file="again")])
    (study,) = studies.rows()
    assert (study.slices, study.positive_slices) == (20, 8)
    assert (study.series, study.positive_series, study.most_positive_slices) == (4, 3, 3)
    assert study.flags == "lossy,thin,tilt"


def slices_of(series: str, probabilities: list[float], **fields: Any) -> list[Prediction]:
    return [
        Prediction(
            f"{series}{place}",
            slice_id=f"{series}.{place}",
            study="s",
            probability=probability,
            decision="positive" if probability >= 0.5 else "negative",
            series=series,
            **fields,
        )
        for place, probability in enumerate(probabilities)
    ]


def gathered(rows: list[Prediction], decision: StudyDecision = HALF, **known: Any) -> list[StudyPrediction]:
    studies = StudyRows(decision, **known)
    studies.add(rows)
    return studies.rows()


def test_one_series_answers_and_the_others_stand_beside_it() -> None:
    rows = slices_of("1.2", [0.9, 0.99], flags="far_kernel") + slices_of("1.3", [0.1, 0.3, 0.25, 0.2], flags="thin")
    (study,) = gathered([*rows, *slices_of("", [0.75])])
    assert asdict(study) == {
        "study": "s",
        "slices": 7,
        "positive_slices": 3,
        "probability": 0.3,
        "decision": "negative",
        "operating_point": "f2",
        "threshold": 0.5,
        "file": "1.31",
        "reason": "",
        "series": 3,
        "positive_series": 2,
        "most_positive_slices": 2,
        "flags": "far_kernel,thin",
        "answering_series": "1.3",
        "answering_flags": "thin",
        "other_series": "1.2 0.99, unnamed 0.75",
        "file_probability": 0.3,
        "file_2": "1.32",
        "file_2_probability": 0.25,
        "file_3": "1.33",
        "file_3_probability": 0.2,
    }


def test_a_slice_under_two_names_is_suspected_once() -> None:
    rows = slices_of("1.2", [0.5, 0.4, 0.2, 0.1])
    again = [replace(rows[1], file="again", probability=0.6), replace(rows[0], file="lower", probability=0.3)]
    (study,) = gathered(rows + again)
    told = [getattr(study, name) for name in ("file", "file_2", "file_3")]
    assert (told, study.slices) == (["again", "1.20", "1.22"], 4)
    (alone,) = gathered(rows[:1])
    assert (alone.file_2, alone.file_2_probability, alone.other_series) == ("", None, "")


def table_of(folder: Path, **kinds: dict[str, Any]) -> SeriesTable:
    """Headers of four slices of each series, or of twelve thin ones."""
    inputs = [one for name, tags in kinds.items() for one in write_series(folder, name, 12 if tags else 4, **tags)]
    return SeriesTable.of_facts([read_facts(inputs)])


def test_headers_tell_which_series_answers(tmp_path: Path) -> None:
    """The thick one is like the training data; without these the one of more slices answers."""
    table = table_of(tmp_path, a={"step_mm": 1, **THIN}, b={})
    rows = slices_of("a", [0.9] * 12) + slices_of("b", [0.2, 0.1, 0.1, 0.1])
    (like,), (more,) = (gathered(rows, training=known, table=table) for known in (THICK, None))
    assert (like.answering_series, like.probability, like.other_series) == ("b", 0.2, "a 0.9")
    assert (more.answering_series, more.probability, more.other_series) == ("a", 0.9, "b 0.2")


def test_only_slices_that_were_accepted_make_a_series_answer(tmp_path: Path) -> None:
    """Of the thick series nothing could be read, or one slice alone, which is no head."""
    table = table_of(tmp_path, a={"step_mm": 1, **THIN}, b={})
    thin, thick = slices_of("a", [0.9] * 12), slices_of("b", [0.2] * 4)
    refused = [replace(row, probability=None, decision="", reason="no_pixel") for row in thick]
    study, *others = gathered(thin + refused, training=THICK, table=table)
    assert (study.answering_series, study.series, len(others)) == ("a", 1, 4)
    study, *others = gathered([*thin, thick[0], *refused[1:]], training=THICK, table=table)
    assert (study.answering_series, study.series, len(others)) == ("a", 2, 3)


def fitted(scaled_by: str = "own", **points: float) -> StudyCalibration:
    numbers: dict[str, Any] = {"sensitivity": None, "specificity": None, "ppv": None, "f2": None}
    held = {name: OperatingPoint(threshold=threshold, **numbers) for name, threshold in points.items()}
    counts: dict[str, Any] = {
        "studies": 9,
        "positives": 4,
        "patients": 4,
        "log_loss_before": 0.5,
        "log_loss_after": 0.4,
    }
    of_any = StudyScaling(**counts, scaled_by=scaled_by, temperature=2, bias=1, operating_points=held)
    return StudyCalibration(created=0, labels={"any": of_any})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_bundle(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def card(bundle: Path) -> Card:
    return read_card(locate(bundle))


def test_studies_are_calibrated_and_decided_by_their_own_where_something_was_fitted(card: Card) -> None:
    """sigmoid((logit + shift) / T + b) of slices with 0, 0.5, 2 and of studies with 0, 2, 1."""
    of_studies = card.model_copy(update={"studies": fitted(study_f2=0.7, study_sensitivity_95=0.6),
                                         "temperature": 0.5, "bias": 2.0, "prior_shift": 0.0})  # fmt: skip
    decision = StudyDecision.of_card(of_studies, "f2")
    assert StudyDecision.of_card(of_studies, "study_f2") == decision
    assert (decision.point, decision.threshold, decision.of_slices) == ("study_f2", 0.7, "f2")
    logit = (math.log(0.2 / 0.8) - 2) * 0.5
    (study,) = gathered(slices_of("1.2", [0.1, 0.2]) + slices_of("1.3", [0.1]), decision)
    assert study.probability == pytest.approx(1 / (1 + math.exp(-logit / 2 - 1)))
    assert (study.decision, study.operating_point, study.threshold) == ("negative", "study_f2", 0.7)
    assert study.file_probability == 0.2
    assert study.other_series == f"1.3 {1 / (1 + math.exp(-(math.log(0.1 / 0.9) - 2) / 4 - 1)):.6g}"
    assert StudyDecision.of_card(of_studies, "sensitivity_95").threshold == 0.6


def test_where_nothing_was_fitted_to_studies_slices_decide(card: Card) -> None:
    few = card.model_copy(update={"studies": fitted("slices")})
    for one in (few, card):
        decision = StudyDecision.of_card(one, "f2")
        assert (decision.point, decision.threshold) == ("f2", card.operating_points["f2"].threshold)
        assert decision.probabilities([0.25]) == [0.25]


@pytest.mark.parametrize(
    ("studies", "point", "said"),
    [
        (None, "study_f2", "'study_f2' comes from the studies of calibration patients, got none; use f2"),
        (fitted("slices"), "study_f2", "'study_f2' comes from the studies of calibration patients, got none; use f2"),
        (fitted(study_f2=0.7), "sensitivity_90", "'sensitivity_90' of studies comes from calibration, got study_f2"),
    ],
)
def test_a_point_that_studies_do_not_have_is_refused(card: Card, studies: Any, point: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StudyDecision.of_card(card.model_copy(update={"studies": studies}), point)


def test_a_table_by_study_has_a_row_for_each_study_decided_by_its_series(
    bundle: Path, card: Card, tmp_path: Path
) -> None:
    """A card that knows thick series and studies: the thin series of one of two studies stands beside the thick."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    changes = {"studies": fitted(study_f2=0.7), "training_data": THICK}
    write_card(locate(folder), card.model_copy(update=changes))
    for name, count, tags in (
        ("1.1", 9, {"step_mm": 1.0, **THIN}),
        ("1.2", 4, {}),
        ("1.3", 4, {"StudyInstanceUID": "9"}),
    ):
        write_series(tmp_path / "scans", name, count, **tags)
    slices = load_bundle(folder).predict([tmp_path / "scans"])
    found = predict(folder, [tmp_path / "scans"], tmp_path / "out.json", by="study", point="study_f2")
    rows = [StudyPrediction(**row) for row in json.loads((tmp_path / "out.json").read_text())]
    assert [(row.study, row.answering_series, row.slices, row.series) for row in rows] == [
        ("study", "1.2", 13, 2),
        ("9", "1.3", 4, 1),
    ]
    assert (found.cases, found.positive) == (2, sum(row.decision == "positive" for row in rows))
    for row in rows:
        own = sorted((one.probability or 0, one.file) for one in slices if one.series == row.answering_series)[::-1]
        told = [(row.file_probability, row.file), (row.file_2_probability, row.file_2),
                (row.file_3_probability, row.file_3)]  # fmt: skip
        assert told == own[:3]
        logits = card.scaling.logits(np.array([own[0][0]]))
        assert row.probability == pytest.approx(float(1 / (1 + np.exp(-logits[0] / 2 - 1))))
        assert row.decision == ("positive" if (row.probability or 0) >= 0.7 else "negative")
        assert row.operating_point == "study_f2"
