"""Reports of all studies of `predict` into one folder.

The headers of the series that answer are read once more, for what a report repeats of them; nothing of that is kept,
said or logged.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ich_ray.bundle.structured_report import ReferencedSlice, StructuredReports, check_highdicom
from ich_ray.errors import ConfigError, Rejection
from ich_ray.storage import check_folder, exists, locate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.input_survey import Input
    from ich_ray.bundle.study_prediction import GatheredStudies, StudyPrediction
    from ich_ray.storage import Location

__all__ = ["check_reports", "write_reports"]

# What stands in such a folder is shared, and names no patient.
_SHARED = ("search.json", "dataset.json", "card.json")


def check_reports(folder: Location) -> None:
    """Refuse a place whose files are shared without a thought of patients.

    Raises:
        ConfigError: it lies in a search, a dataset or a bundle, cannot be written, or highdicom is missing.
    """
    check_highdicom()
    place = locate(folder)
    for parent in (place, *place.parents):
        if found := next((name for name in _SHARED if exists(parent / name)), ""):
            raise ConfigError(
                f"--dicom-sr {folder}: reports name patients and must lie by themselves, got a folder in {parent}, "
                f"which holds {found}; name another"
            )
    check_folder(place, "--dicom-sr")


def write_reports(
    card: Card, folder: Location, studies: GatheredStudies, inputs: Sequence[Input], without_preamble: bool = False
) -> tuple[int, Counter[str]]:
    """Write a report of each study that has a probability.

    Args:
        card: of the bundle.
        folder: for the reports.
        studies: whose rows were added in the order of `inputs`.
        inputs: a frame at a time.
        without_preamble: as the slices were read.

    Returns:
        How many were written, and how many studies have none for which reason.
    """
    reports, written, missing = StructuredReports(card, locate(folder)), 0, Counter[str]()
    for row, numbers in studies.answering_rows():
        reason = _why_failed(reports, row, [inputs[number] for number in numbers], without_preamble)
        written += not reason
        missing.update([reason] if reason else [])
    return written, missing


def _why_failed(
    reports: StructuredReports, row: StudyPrediction, inputs: Sequence[Input], without_preamble: bool
) -> str:
    """Why a study has no report; an error is that of its study alone, and told without what it quotes."""
    try:
        return _write(reports, row, inputs, without_preamble)
    except OSError as error:
        return f"whose report could not be written ({error.strerror or type(error).__name__})"
    except Exception as error:  # noqa: BLE001  (files of any origin, and two packages that judge them)
        return f"whose report failed ({type(error).__name__})"


def _write(reports: StructuredReports, row: StudyPrediction, inputs: Sequence[Input], without_preamble: bool) -> str:
    from ich_ray.ct.patient_module import read_source_instance
    from ich_ray.ct.slice_file import frame_name  # pydicom is not needed to load a bundle

    try:
        sources = {
            file: read_source_instance(file, without_preamble) for file in dict.fromkeys(one.file for one in inputs)
        }
    except Rejection:
        return "with a file that can no longer be read"
    named = {frame_name(one.file, one.frame): one for one in inputs}
    suspects = (
        (row.file, row.file_probability),
        (row.file_2, row.file_2_probability),
        (row.file_3, row.file_3_probability),
    )
    found = [
        ReferencedSlice(sources[named[name].file], named[name].frame, probability)
        for name, probability in suspects
        if probability is not None
    ]
    return reports.write(row, [*sources.values()], found)
