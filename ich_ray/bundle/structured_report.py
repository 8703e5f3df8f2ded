"""A DICOM Structured Report of what a bundle says of a study: TID 1500, for archives and viewers.

Needs the `dicom-sr` extra (highdicom). A report repeats patient and study of its source, or no archive could file it:
so it is written where it is asked for, and nowhere else. It is the same, to the byte, for the same bundle, operating
point and files: its UIDs are made of these, and its dates are those of the study.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
import warnings
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import ich_ray
from ich_ray.errors import ConfigError
from ich_ray.storage import is_local, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.study_prediction import StudyPrediction
    from ich_ray.ct.patient_module import SourceInstance

__all__ = ["ReferencedSlice", "StructuredReports", "check_highdicom"]

NOT_FOR_DIAGNOSIS = "Research software, not a medical device: not for diagnostic use."
_SERIES_DESCRIPTION = "Haemorrhage detector, not for diagnostic use"
_SERIES_NUMBER = 9900  # behind those of a scanner
_UTF_8 = "ISO_IR 192"
# What decides what a bundle says of a study.
_DECISIVE = {"parameters", "temperature", "prior_shift", "bias", "operating_points", "subtypes", "studies", "tta",
             "windows", "size", "training_data", "weights", "members", "sequence"}  # fmt: skip


def check_highdicom() -> Any:
    """The package that writes reports.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import highdicom
    except ImportError:
        newest = "; it has no wheels for Python 3.14 yet" if sys.version_info >= (3, 14) else ""
        raise ConfigError(
            f"--dicom-sr: highdicom must be installed, got none; run `pip install 'ich_ray[dicom-sr]'`{newest}"
        ) from None
    return highdicom


@dataclass(frozen=True)
class ReferencedSlice:
    """A slice that a report names.

    Attributes:
        source: its file.
        frame: of the file, 0 if this is one slice.
        probability: by slice.
    """

    source: SourceInstance
    frame: int
    probability: float


class StructuredReports:
    """Writes reports of one bundle at one operating point into a folder, for their owner only.

    Raises:
        ConfigError: highdicom is not installed.
    """

    def __init__(self, card: Card, folder: UPath) -> None:
        self._highdicom = check_highdicom()
        self._card, self._folder = card, folder
        of_card = card.model_dump_json(include=_DECISIVE)
        self._bundle = hashlib.sha256(of_card.encode()).hexdigest()

    def write(self, row: StudyPrediction, evidence: Sequence[SourceInstance], named: Sequence[ReferencedSlice]) -> str:
        """Write the report of a study.

        Args:
            row: of the study.
            evidence: the files of the series that answers.
            named: the most suspicious slices of these.

        Returns:
            Why there is none; empty if there is one.
        """
        if why_not := _why_not(row, evidence):
            return why_not
        report = self._report(row, evidence, named)
        if is_local(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning would quote what it is about
            report.save_as(data, enforce_file_format=True)
        write_bytes(self._folder / f"{report.SOPInstanceUID}.dcm", data.getvalue(), private=True)
        return ""

    def _uid(self, *parts: str) -> str:
        """A UID made of the bundle and these, under the root of UUIDs (PS3.5 B.2)."""
        text = "\0".join((self._bundle, *parts))
        return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"

    def _report(
        self, row: StudyPrediction, evidence: Sequence[SourceInstance], named: Sequence[ReferencedSlice]
    ) -> Any:
        sr, card = self._highdicom.sr, self._card
        first = evidence[0]
        about = (row.study, row.operating_point)
        date, clock = self._when(first)
        report = sr.ComprehensiveSR(
            evidence=[_evidence(one) for one in evidence],
            content=self._content(row, named, about),
            series_instance_uid=self._uid("series", *about),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=self._uid("report", *about),
            instance_number=1,
            manufacturer="ich_ray",
            manufacturer_model_name=_short(card.name),
            software_versions=ich_ray.__version__,
            device_serial_number=self._bundle[:16],
            series_description=_SERIES_DESCRIPTION,
            is_complete=True,
            specific_character_set=_UTF_8,
            content_date=date,
            content_time=clock,
        )
        report.InstanceCreationDate, report.InstanceCreationTime = date, clock
        for tool in report.get("ContributingEquipmentSequence", ()):
            del tool.ContributionDateTime  # now
        # Not through highdicom, whose warnings quote names.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report.PatientID, report.PatientName = first.patient_id, first.patient_name
            report.PatientBirthDate, report.PatientSex = first.birth_date, first.sex
            report.StudyDate, report.StudyTime, report.StudyID = first.study_date, first.study_time, first.study_id
            report.AccessionNumber, report.ReferringPhysicianName = first.accession_number, first.referring_physician
        return report

    def _when(self, source: SourceInstance) -> tuple[str, str]:
        """Date and time of the study; where its files do not say, of the calibration of the bundle, in UTC."""
        if source.study_date:
            return source.study_date, source.study_time or "000000"
        made = self._card.calibrations[-1].created if self._card.calibrations else self._card.created
        return time.strftime("%Y%m%d", time.gmtime(made)), time.strftime("%H%M%S", time.gmtime(made))

    def _content(self, row: StudyPrediction, named: Sequence[ReferencedSlice], about: tuple[str, ...]) -> Any:
        from pydicom.sr.codedict import codes

        sr, card = self._highdicom.sr, self._card
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=self._uid("device"), name="ich_ray", manufacturer_name="ich_ray", model_name=card.name
        )
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(
                observer_device_context=sr.ObserverContext(
                    observer_type=codes.DCM.Device, observer_identifying_attributes=device
                )
            ),
            procedure_reported=codes.SCT.ComputedTomographyOfHead,
            imaging_measurements=[*self._groups(row, named, about)],
        )
        comment = sr.TextContentItem(
            name=codes.DCM.Comment, value=NOT_FOR_DIAGNOSIS, relationship_type=sr.RelationshipTypeValues.CONTAINS
        )
        content[0].ContentSequence.append(comment)
        return content

    def _groups(self, row: StudyPrediction, named: Sequence[ReferencedSlice], about: tuple[str, ...]) -> Iterator[Any]:
        """What is said of the study, with the slices that made it say so; then of each of these."""
        from pydicom.sr.codedict import codes

        sr, card = self._highdicom.sr, self._card
        numbers = count()
        algorithm = sr.AlgorithmIdentification(
            name=f"ich_ray {card.name}, {card.architecture}",
            version=f"{ich_ray.__version__}, bundle {self._bundle[:16]}",
            parameters=[
                f"operating point {row.operating_point}",
                *(f"weights {note.sha256}" for note in card.each_weights),
                *([f"flags {row.answering_flags}"] if row.answering_flags else []),
                NOT_FOR_DIAGNOSIS,
            ],
        )

        def number(name: Any, value: float | None) -> Any:
            return sr.Measurement(name=name, value=value, unit=codes.UCUM.NoUnits)

        def group(what: str, measured: Sequence[Any], slices: Sequence[ReferencedSlice], evaluated: Any) -> Any:
            return sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(
                    uid=self._uid("finding", *about, str(next(numbers))), identifier=what
                ),
                finding_type=codes.SCT.IntracranialHemorrhage,
                algorithm_id=algorithm,
                measurements=measured,
                qualitative_evaluations=evaluated,
                source_images=[_reference(sr, one) for one in slices],
            )

        says = codes.SCT.Positive if row.decision == "positive" else codes.SCT.Negative
        decided = sr.QualitativeEvaluation(
            name=sr.CodedConcept("decision", "99ICHRAY", f"Decision at operating point {row.operating_point}"[:64]),
            value=says,
        )
        shown = [number(codes.DCM.Probability, row.probability), number(codes.DCM.ThresholdValue, row.threshold)]
        yield group("study", shown, named, [decided])
        for place, one in enumerate(named, 1):
            yield group(f"slice {place}", [number(codes.DCM.Probability, one.probability)], [one], None)


def _why_not(row: StudyPrediction, evidence: Sequence[SourceInstance]) -> str:
    if not row.study:
        return "without a study"
    if not all(one.uids_are_valid for one in evidence):
        return "with identifiers that are no UIDs"
    patients = {one.patient_id for one in evidence}
    if len(patients) > 1:
        return "of several patients"
    (patient,) = patients
    if len(patient) > 64 or not patient.isprintable() or "\\" in patient:
        return "with a PatientID that no report may hold"
    return ""


def _evidence(source: SourceInstance) -> Any:
    """What highdicom asks of a source; patient and study are filled in behind its back."""
    from pydicom.dataset import Dataset

    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID = source.sop_class, source.sop_instance
    found.SeriesInstanceUID, found.StudyInstanceUID = source.series, source.study
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                    "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
        setattr(found, keyword, "")
    return found


def _reference(sr: Any, one: ReferencedSlice) -> Any:
    frames = [one.frame] if one.frame else None
    return sr.SourceImageForMeasurementGroup(one.source.sop_class, one.source.sop_instance, frames)


def _short(text: str) -> str:
    return text.replace("\\", "/")[:64]
