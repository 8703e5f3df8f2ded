"""DICOM Structured Reports of `predict --by study`: read back by highdicom and by DCMTK, and nothing leaks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ich_ray import cli, progress
from ich_ray.bundle.card import Card
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.members import Member
from ich_ray.bundle.structured_report import StructuredReports
from ich_ray.bundle.study_reports import check_reports
from ich_ray.errors import ConfigError
from ich_ray.storage import locate
from ich_ray.trial_records import WeightsNote
from tests.bundle.test_frames import series as enhanced_file
from tests.bundle.test_input_survey import THIN, write_series
from tests.bundle.test_training_data import THICK
from tests.ct.files import ABSENT
from tests.searched import calibrated_bundle

hd = pytest.importorskip("highdicom", reason="highdicom is not installed, which the extra dicom-sr brings")

NAMED = {
    "PatientName": "CANARY^Äsa",
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientID": "CANARY-1",
    "PatientBirthDate": "19500131",
    "PatientSex": "F",
    "AccessionNumber": "CANARY-A7",
    "StudyID": "CANARY-S",
    "StudyDate": "20240229",
    "StudyTime": "101530",
    "ReferringPhysicianName": "CANARY^Referrer",
}
STUDY = "1.2.840.1.5"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows thick slices."""
    folder = calibrated_bundle(tmp_path_factory.mktemp("reports"))
    write_card(locate(folder), card_of(folder).model_copy(update={"training_data": THICK}))
    return folder


def card_of(bundle: Path) -> Card:
    return read_card(locate(bundle))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A thick series and a thin one of one study."""
    for name, count, tags in (("1.2.7", 4, {}), ("1.2.8", 8, {"step_mm": 1.0, **THIN})):
        write_series(tmp_path / "scans", name, count, **{**NAMED, "StudyInstanceUID": STUDY, **tags})
    return tmp_path / "scans"


def predicted(bundle: Path, scans: Path, *more: str, code: int = 0) -> list[dict[str, Any]]:
    """Rows by study; reports lie in `reports` beside the images."""
    out = scans.parent / "out.json"
    command = ["predict", str(bundle), str(scans), "--out", str(out), "--by", "study"]
    assert cli.call([*command, "--dicom-sr", str(scans.parent / "reports"), *more]) == code
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows


def reports_of(scans: Path) -> list[Any]:
    return [hd.sr.srread(path) for path in sorted((scans.parent / "reports").iterdir())]


def measured(group: Any) -> dict[str, float]:
    return {one.name.meaning: one.value for one in group.get_measurements()}


def test_a_report_says_what_the_row_says(bundle: Path, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = predicted(bundle, scans)
    assert f"1 reports  {scans.parent}/reports" in capsys.readouterr().out
    (report,) = reports_of(scans)
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    assert (report.content.get_observer_contexts()[0].observer_identifying_attributes.name) == "ich_ray"
    study, *slices = report.content.get_image_measurement_groups()
    assert study.finding_type == hd.sr.CodedConcept("1386000", "SCT", "Intracranial hemorrhage (disorder)")
    assert measured(study) == {
        "Probability": pytest.approx(row["probability"], abs=1e-6),
        "Threshold Value": pytest.approx(row["threshold"], abs=1e-6),
    }
    (decision,) = study.get_qualitative_evaluations()
    assert decision.name.meaning == "Decision at operating point f2"
    assert decision.value.meaning.lower() == row["decision"]
    named = [Path(row[name]).stem for name in ("file", "file_2", "file_3")]
    assert [one.referenced_sop_instance_uid for one in study.source_images] == named
    assert [measured(one) for one in slices] == [
        {"Probability": pytest.approx(row[name], abs=1e-6)}
        for name in ("file_probability", "file_2_probability", "file_3_probability")
    ]
    assert [one.source_images[0].referenced_sop_instance_uid for one in slices] == named
    (of_study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = of_study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == row["answering_series"] == "1.2.7"
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == [f"1.2.7.{n}" for n in range(4)]
    comment = report.ContentSequence[-1]
    assert comment.ConceptNameCodeSequence[0].CodeMeaning == "Comment"
    assert comment.TextValue == "Research software, not a medical device: not for diagnostic use."
    assert "not for diagnostic use" in report.SeriesDescription


def test_dcmtk_reads_it_without_a_complaint(bundle: Path, scans: Path) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not installed, which Debian's package dcmtk brings")
    predicted(bundle, scans)
    (path,) = (scans.parent / "reports").iterdir()
    found = subprocess.run(["dsrdump", "+Pl", str(path)], capture_output=True, text=True, check=True)  # noqa: S607
    assert [line for line in found.stderr.splitlines() if line[:2] in {"E:", "F:"}] == []
    for text in (
        "Comprehensive SR Document",
        '"Finding")=(1386000,SCT,"Intracranial hemorrhage (disorder)")',
        f'TEXT:(,,"Algorithm Name")="ich_ray {card_of(bundle).name}, ',
        'TEXT:(,,"Comment")="Research software, not a medical device: not for diagnostic use."',
        "Verification Flag   : UNVERIFIED",
    ):
        assert text in found.stdout
    assert found.stdout.count('"Source of Measurement")=(CT image,') == 6


def test_it_repeats_patient_and_study_and_these_are_nowhere_else(
    bundle: Path, scans: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Names that DICOM calls into question are not quoted in a warning either; the folder is for its owner only."""
    broken = {
        "PatientName": "CANARY \\^^^^^^^^^",
        "PatientBirthDate": "CANARY",
        "PatientSex": "CANARY",
        "StudyID": "C" * 99,
    }
    write_series(scans, "1.2.9", 2, **{**NAMED, "StudyInstanceUID": "1.2.840.1.6", **broken})
    progress.show()
    with warnings.catch_warnings(record=True) as warned:
        predicted(bundle, scans)
    progress.show(False)
    out, err = capfd.readouterr()
    assert "2 reports" in out
    assert (
        "CANARY"
        not in out + err + caplog.text + str([one.message for one in warned]) + (scans.parent / "out.json").read_text()
    )
    one, other = sorted(reports_of(scans), key=lambda report: str(report.StudyInstanceUID))
    for keyword, value in NAMED.items():
        assert one[keyword].value == ("ISO_IR 192" if keyword == "SpecificCharacterSet" else value)
    assert (one.StudyInstanceUID, other.StudyInstanceUID) == (STUDY, "1.2.840.1.6")
    assert [other[keyword].value for keyword in broken] == ["", "", "", ""]
    folder = scans.parent / "reports"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_same_bundle_point_and_files_give_the_same_bytes(bundle: Path, scans: Path) -> None:
    def written(*more: str) -> dict[str, bytes]:
        shutil.rmtree(scans.parent / "reports", ignore_errors=True)
        predicted(bundle, scans, *more)
        return {path.name: path.read_bytes() for path in (scans.parent / "reports").iterdir()}

    first = written()
    (name,) = first
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{30,38}\.dcm", name)
    assert written() == first
    (report,) = reports_of(scans)
    assert report.SOPInstanceUID == name.removesuffix(".dcm")
    uids = {report.SOPInstanceUID, report.SeriesInstanceUID} | {
        group.tracking_uid for group in report.content.get_image_measurement_groups()
    }
    assert len(uids) == 6
    for date, clock in (("ContentDate", "ContentTime"), ("InstanceCreationDate", "InstanceCreationTime")):
        assert (report[date].value, report[clock].value) == ("20240229", "101530")
    assert not written("--point", "sensitivity_90").keys() & first.keys()


def test_every_file_of_weights_decides_and_is_named(bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(StructuredReports, "write", lambda _, *told: given.extend(told) or "")
        predicted(bundle, scans)
    card = card_of(bundle)
    for digit in "12":  # two ensembles, which differ in their second network alone
        note = WeightsNote(file="model-1.safetensors", sha256=digit * 64)
        member = Member(trial=1, seed=1, parameters=card.parameters, shifts=(0.0,), weights=note)
        ensemble = card.model_copy(update={"members": (member,)})
        assert StructuredReports(ensemble, locate(scans.parent / "reports")).write(*given) == ""
    reports = reports_of(scans)
    assert len({report.SOPInstanceUID for report in reports}) == 2
    texts = [report.to_json() for report in reports]
    assert all(f"weights {card.weights.sha256}" in text for text in texts)
    assert [sum(f"weights {digit * 64}" in text for text in texts) for digit in "12"] == [1, 1]


def test_a_study_without_a_date_has_that_of_the_calibration(bundle: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "scans", "1.2.7", 2, StudyInstanceUID=STUDY, StudyDate=ABSENT, StudyTime=ABSENT)
    predicted(bundle, tmp_path / "scans")
    (report,) = reports_of(tmp_path / "scans")
    made = card_of(bundle).calibrations[-1].created
    told = report.ContentDate + report.ContentTime
    assert told == datetime.fromtimestamp(made, UTC).strftime("%Y%m%d%H%M%S")


def test_a_study_that_no_report_may_be_of_is_counted(
    bundle: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(scans, "1.2.9", 1, **{**NAMED, "StudyInstanceUID": "ID_study"})
    write_series(scans, "1.2.10", 1, **{**NAMED, "StudyInstanceUID": ABSENT})
    write_series(scans, "1.2.11", 1, **{**NAMED, "StudyInstanceUID": "1.2.6"})
    write_series(scans, "1.2.12", 1, **{**NAMED, "StudyInstanceUID": "1.2.6", "SeriesInstanceUID": "1.2.11",
                                        "PatientID": "CANARY-2"})  # fmt: skip
    write_series(scans, "1.2.13", 1, **{**NAMED, "StudyInstanceUID": "1.2.14", "PatientID": "C" * 65})
    assert len(predicted(bundle, scans, code=3)) == 5
    assert (
        "1 reports, 4 studies without (of several patients 1, with a PatientID that no report may hold 1, "
        "with identifiers that are no UIDs 1, without a study 1)" in capsys.readouterr().out
    )
    assert len(reports_of(scans)) == 1


def test_days_and_times_that_there_are_not_are_left_out(bundle: Path, tmp_path: Path) -> None:
    impossible = {"StudyDate": "20241301", "StudyTime": "246161", "PatientBirthDate": "00000000"}
    write_series(tmp_path / "scans", "1.2.7", 2, **{**NAMED, "StudyInstanceUID": STUDY, **impossible})
    assert len(predicted(bundle, tmp_path / "scans")) == 1
    (report,) = reports_of(tmp_path / "scans")
    assert [report[keyword].value for keyword in impossible] == ["", "", ""]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("CANARY"), "whose report failed (ValueError)"),
        (OSError(28, "No space left on device"), "whose report could not be written (No space left on device)"),
    ],
)
def test_an_error_of_one_report_costs_no_row_and_no_other_report(
    bundle: Path,
    scans: Path,
    error: Exception,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_series(scans, "1.2.9", 2, **{**NAMED, "StudyInstanceUID": "1.2.6"})
    write = StructuredReports.write

    def failing(self: StructuredReports, row: Any, *given: Any) -> str:
        assert (scans.parent / "out.json").exists(), "the table is closed before"
        if row.study == rows[0]["study"]:
            raise error
        return write(self, row, *given)

    rows = predicted(bundle, scans)
    shutil.rmtree(scans.parent / "reports")
    monkeypatch.setattr(StructuredReports, "write", failing)
    (scans.parent / "out.json").unlink()
    assert predicted(bundle, scans, code=3) == rows
    told = capsys.readouterr()
    assert f"1 reports, 1 studies without ({why} 1)" in told.out
    assert "CANARY" not in told.out + told.err
    assert len(reports_of(scans)) == 1


def test_a_frame_is_referred_to_by_its_number(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()

    def named(file: Any) -> None:
        file.SOPInstanceUID, file.SeriesInstanceUID, file.StudyInstanceUID = "1.2.9", "1.2.7", STUDY

    (tmp_path / "scans" / "a.dcm").write_bytes(enhanced_file(named))
    (row,) = predicted(bundle, tmp_path / "scans")
    (report,) = reports_of(tmp_path / "scans")
    study, *_ = report.content.get_image_measurement_groups()
    assert [(one.referenced_sop_instance_uid, one.referenced_frame_numbers) for one in study.source_images] == [
        ("1.2.9", [int(row[name].split("#")[1])]) for name in ("file", "file_2", "file_3")
    ]


@pytest.mark.parametrize("shared", ["search.json", "dataset.json", "card.json"])
def test_reports_never_lie_in_what_is_shared(tmp_path: Path, shared: str) -> None:
    (tmp_path / shared).write_text("{}")
    with pytest.raises(ConfigError, match=rf"--dicom-sr .*: reports name patients .* which holds {shared}"):
        check_reports(tmp_path / "final" / "reports")
    assert not (tmp_path / "final").exists()


def test_what_cannot_be_is_refused_before_any_work(
    bundle: Path, scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["predict", str(bundle), str(scans), "--out", str(scans.parent / "out.csv"), "--dicom-sr"]
    assert cli.call([*command, str(scans.parent / "reports")]) == 2
    assert "--dicom-sr: a report is of a study, got rows by slice; add --by study" in capsys.readouterr().err
    assert cli.call([*command, str(scans / "1.2.7.0.dcm"), "--by", "study"]) == 2
    assert "must be a folder, got a file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert cli.call([*command, str(scans.parent / "reports"), "--by", "study"]) == 2
    said = capsys.readouterr().err
    assert "--dicom-sr: highdicom must be installed, got none; run `pip install 'ich_ray[dicom-sr]'`" in said
    assert said.count("\n") == 1
    assert not (scans.parent / "out.csv").exists()
