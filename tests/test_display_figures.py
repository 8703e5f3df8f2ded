from __future__ import annotations

import json
from typing import Any

import pytest

from ich_ray.display_figures import print_calibration, print_evaluation

POINT = {"threshold": 0.25, "rule": "highest F2", "sensitivity": 0.9, "specificity": 0.5, "ppv": None}
FIT = {
    "patients": 13,
    "positives": 23,
    "log_loss_before": 0.7,
    "log_loss_after": 0.5,
    "operating_points": {"f2": POINT},
}
STUDIES = {"labels": {"any": {**FIT, "studies": 40, "operating_points": {}, "notes": ["too few studies"]}}}
KNOWN = {"value": 0.5, "low": 0.25, "high": 0.75}
UNKNOWN = {"value": None, "low": None, "high": None}
MEASURED = {"threshold": 0.25, "sensitivity": KNOWN, "specificity": KNOWN, "ppv": UNKNOWN, "f2": {**KNOWN, "low": None}}


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_calibration_says_on_whom_and_what_its_thresholds_give(capsys: pytest.CaptureFixture[str]) -> None:
    print_calibration({**FIT, "slices": 1060, "notes": ["a note"], "studies": STUDIES}, "first/calibration.json", False)
    assert said(capsys) == [
        "calibrated on 1,060 slices of 13 patients, 23 positive: log loss 0.700 before, 0.500 after",
        "operating point rule probability >= sensitivity specificity ppv",
        "f2 highest F2 0.250 0.900 0.500 -",
        "note: a note",
        "calibrated on 40 studies, 23 positive of 13 patients: log loss 0.700 before, 0.500 after",
        "note: too few studies",
        "written first/calibration.json",
    ]


def test_a_calibration_of_studies_alone_says_that(capsys: pytest.CaptureFixture[str]) -> None:
    print_calibration(STUDIES, "local", False)
    assert said(capsys) == [
        "calibrated on 40 studies, 23 positive of 13 patients: log loss 0.700 before, 0.500 after",
        "note: too few studies",
        "written local",
    ]


def test_a_log_loss_that_is_undefined_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    none = {**FIT, "studies": 0, "log_loss_before": None, "log_loss_after": None, "operating_points": {}}
    print_calibration({"labels": {"any": none}}, "local", False)
    assert said(capsys)[0].endswith("0 studies, 23 positive of 13 patients: log loss - before, - after")


def test_an_evaluation_says_its_figures_with_their_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {
        "operating_points": {"f2": MEASURED},
        "metrics": {"average_precision": KNOWN},
        "notes": ["few"],
        "opened": 2,
    }
    print_evaluation(found, "first/evaluation.json", False)
    assert said(capsys) == [
        "operating point f2: probability >= 0.250",
        "on test patients sensitivity 0.500 [0.250, 0.750], specificity 0.500 [0.250, 0.750], ppv undefined, f2 0.500",
        "average_precision 0.500 [0.250, 0.750]",
        "note few",
        "opened 2 so far",
        "all figures first/evaluation.json",
    ]


def test_an_evaluation_by_labels_of_studies_alone_has_figures_of_studies_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    studies = {
        "cases": 5,
        "operating_points": {"study_f2": MEASURED},
        "metrics": {"average_precision": KNOWN, "roc_auc": UNKNOWN},
    }
    print_evaluation({"level": "study", "studies": studies, "notes": ["no slices"], "opened": 1}, "figures", False)
    assert said(capsys) == [
        "by study study_f2: probability >= 0.250",
        "on test studies sensitivity 0.500 [0.250, 0.750], specificity 0.500 [0.250, 0.750], ppv undefined",
        "by study 5 studies: average_precision 0.500 [0.250, 0.750], roc_auc undefined",
        "note no slices",
        "opened 1 so far",
        "all figures figures",
    ]


@pytest.mark.parametrize("show", [print_calibration, print_evaluation])
def test_json_is_the_record_itself(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show({"slices": 3}, "somewhere", True)
    assert json.loads(capsys.readouterr().out) == {"slices": 3}
