"""`ich-ray predict`: any number of files through one process, or many through Ray Data.

Headers first: a slice is judged by its series, and a series by the training data, before any is decoded. The bundle and
its rows are made elsewhere; this chooses who works and writes the file. Each Ray worker loads the bundle once and holds
one batch at a time. Whole series go to one worker where a slice is seen by others of its series: with neighbors, with
`crop: head` and in slabs. Rows are written in the order of the inputs.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc

from ich_ray import progress
from ich_ray.bundle.bundle import OPERATING_POINT, load_bundle
from ich_ray.bundle.card_file import read_card
from ich_ray.bundle.input_survey import read_facts, read_facts_ahead, survey_inputs
from ich_ray.bundle.prediction import LabelledPrediction, Prediction, Predictor, list_inputs
from ich_ray.bundle.study_decision import StudyDecision
from ich_ray.bundle.study_prediction import GatheredStudies, LabelledStudyPrediction, StudyPrediction
from ich_ray.bundle.study_reports import check_reports, write_reports
from ich_ray.bundle.table_writer import as_table, check_suffix, from_table, writing_rows
from ich_ray.bundle.work_parts import as_item, in_order, part_of, single_slices
from ich_ray.data.neighbors import neighbor_rows, without_neighbors
from ich_ray.errors import ConfigError
from ich_ray.machines import ask_machines
from ich_ray.ray_data import map_in_order
from ich_ray.runtime import connected
from ich_ray.storage import Location, check_file, check_folder, locate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.input_survey import Input, Survey
    from ich_ray.bundle.work_parts import Part

__all__ = ["Totals", "predict"]

# Below this one process is done before Ray has started its workers (about 20 s with theirs).
_WORTH_RAY = 5000
# Headers that a task of Ray reads: 0.1 s of work.
_HEADERS_A_TASK = 1024


@dataclass
class Totals:
    """How many inputs there were, and what became of them.

    Attributes:
        cases: slices with a probability, or by study, studies with one.
        positive: of these.
        rejected: files with a fault; `excluded`, those that are no axial slice of a head.
        reasons: how many of both for which.
        flagged: rows of the table with a flag; `flags`, how many with which.
        reports: of studies that were written; `unreported`, how many studies have none for which reason.
    """

    inputs: int
    cases: int = 0
    positive: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    excluded: int = 0
    reports: int = 0
    unreported: Counter[str] = field(default_factory=Counter)

    def reject(self, rows: Iterable[Prediction]) -> None:
        """Count the files that have no probability."""
        from ich_ray.ct.dicom import EXCLUSIONS  # pydicom is not needed to load a bundle

        reasons = [row.reason for row in rows if row.reason]
        excluded = sum(reason in EXCLUSIONS for reason in reasons)
        self.excluded += excluded
        self.rejected += len(reasons) - excluded
        self.reasons.update(reasons)

    def count(self, rows: Iterable[Prediction | StudyPrediction]) -> None:
        """Count rows of the table."""
        for row in rows:
            self.cases += not row.reason
            self.positive += row.decision == "positive"
            self.flagged += bool(row.flags)
            self.flags.update(row.flags.split(",") if row.flags else ())


@dataclass(frozen=True)
class _Order:
    """What every worker is told; plain values, as it travels through Ray."""

    bundle: str
    point: str
    heatmaps: str | None
    without_preamble: bool = False
    for_studies: bool = False

    def predictor(self) -> Predictor:
        bundle = load_bundle(self.bundle)
        keys: dict[str, Any] = {"without_preamble": self.without_preamble, "for_studies": self.for_studies}
        if self.heatmaps is None:
            return Predictor(bundle, self.point, **keys)
        from ich_ray.bundle.grad_cam import HeatMaps

        maps = HeatMaps(bundle, locate(self.heatmaps))
        return Predictor(bundle, self.point, maps, **keys)


def predict(
    bundle: Location,
    paths: list[Location],
    out: Location,
    *,
    point: str = OPERATING_POINT,
    by: Literal["slice", "study"] = "slice",
    heatmaps: Location | None = None,
    dicom_sr: Location | None = None,
    slabs: bool = True,
    without_preamble: bool = False,
    address: str | None = None,
) -> Totals:
    """Predict files and folders into one table with a row for every input, written whole or not at all.

    Args:
        bundle: a calibrated bundle.
        paths: DICOM files and folders of them.
        out: a file that ends in `.csv`, `.json` or `.parquet`. In CSV, text that a spreadsheet would compute gets a
            single quote in front (see `spreadsheet.inert`), which only names of files can need; the others are exact.
        point: the operating point that decides.
        by: a row for each slice, or for each study, as probable as the series that answers for it (rejected files keep
            their own).
        heatmaps: a folder for a Grad-CAM picture of each accepted slice.
        dicom_sr: a folder for a DICOM Structured Report of each study, which repeats its patient.
        slabs: average the slices of series that are finer than the training data, see `TrainingData.slab_rule`.
        without_preamble: read files that begin with their meta information, too.
        address: a Ray cluster that sees the same files; many files use Ray on this machine anyway.

    Raises:
        ConfigError: a path or the bundle does not exist, nothing was given, there is no such operating point, or `out`
            has another suffix, or one of the places cannot be written.
        IntegrityError: the bundle is damaged.
    """
    target = locate(out)
    _check_places(target, heatmaps, dicom_sr, by)
    pictures = None if heatmaps is None else str(locate(heatmaps))
    decision = StudyDecision.of_card(read_card(locate(bundle)), point) if by == "study" else None
    decides = point if decision is None else decision.of_slices
    order = _Order(str(locate(bundle)), decides, pictures, without_preamble, for_studies=by == "study")
    predictor, inputs = order.predictor(), list_inputs(paths)
    if target in map(locate, paths):
        raise ConfigError(f"--out {target}: a file that is no input must be given, got an input; name another")
    many = address is not None or len(inputs) >= _WORTH_RAY
    totals = Totals(len(inputs))
    of_study = LabelledStudyPrediction if predictor.kind is LabelledPrediction else StudyPrediction
    kind: type[Prediction | StudyPrediction] = predictor.kind if by == "slice" else of_study
    with connected(address) if many else nullcontext(), writing_rows(target, kind) as append:
        if many:
            ask_machines()
        survey = _surveyed(inputs, predictor.bundle.card, slabs, order, many)
        totals.inputs = len(survey.inputs)
        studies = (
            None if decision is None else GatheredStudies(decision, predictor.bundle.card.training_data, survey.table)
        )
        parts = predictor.parts(survey.inputs, survey.table, survey.slabs)
        found = _through_ray(order, parts, predictor.row_kind) if many else predictor.rows(parts)
        with progress.bar("Predicting", totals.inputs, "slices") as advance:
            for rows in in_order(parts, _rejects_counted(found, totals, advance)):
                if studies is None:
                    append(rows)
                    totals.count(rows)
                else:
                    studies.add(rows)
        if studies is not None:
            append(gathered := _gathered(studies))
            totals.count(gathered)
    if studies is not None and dicom_sr is not None:  # the table is whole: no report can cost a row
        reports = write_reports(predictor.bundle.card, dicom_sr, studies, survey.inputs, without_preamble)
        totals.reports, totals.unreported = reports
    return totals


def _check_places(
    target: UPath, heatmaps: Location | None, dicom_sr: Location | None, by: Literal["slice", "study"]
) -> None:
    check_suffix(target)
    check_file(target, "--out")
    if heatmaps is not None:
        check_folder(locate(heatmaps), "--heatmaps")
    if dicom_sr is not None:
        if by != "study":
            raise ConfigError("--dicom-sr: a report is of a study, got rows by slice; add --by study")
        check_reports(dicom_sr)


def _gathered(studies: GatheredStudies) -> list[StudyPrediction]:
    if studies.repeated:
        progress.say(f"  {studies.repeated} files repeat a slice of their study and are not counted again")
    return studies.rows()


def _rejects_counted(
    found: Iterable[list[Prediction]], totals: Totals, advance: progress.Advance
) -> Iterator[list[Prediction]]:
    done = 0
    for rows in found:
        done += len(rows)
        totals.reject(rows)
        advance(done, f"{totals.rejected} rejected")
        yield rows


def _surveyed(inputs: list[Input], card: Card, slabs: bool, order: _Order, many: bool) -> Survey:
    """The inputs, a frame at a time, with what their series says of them."""
    facts = _facts_through_ray(order, inputs) if many else read_facts_ahead(inputs, order.without_preamble)
    with progress.bar("Reading headers", len(inputs), "files") as advance:
        found = survey_inputs(inputs, _counted(facts, advance), card.training_data, slabs)
    for note in filter(None, [*found.notes, _alone(found, card.parameters.neighbors)]):
        progress.say(f"  {note}")
    return found


def _alone(survey: Survey, neighbors: int) -> str:
    """How many slices have no other of their series beside them; empty if each has one, or needs none."""
    if not neighbors:
        return ""
    table = survey.table
    rows = np.flatnonzero((table.series >= 0) & [not given.reason for given in survey.inputs])
    series, places_mm = table.series[rows].astype(np.int64), table.position_mm[rows].astype(np.float64)
    slabs = survey.slabs
    apart_mm = None if slabs is None else np.where(slabs.finer, slabs.rule.spacing_mm, 0.0)[rows]
    beside = neighbor_rows(series, places_mm, np.full(len(rows), "", object), apart_mm, across_gaps=True)
    if not (count := without_neighbors(beside, np.arange(len(rows)))):
        return ""
    return (
        f"neighbors: {neighbors} must lie on either side of a slice, got {count} of {len(rows)} slices without any: "
        "each stands in for its own and is flagged neighbors_unknown; give the whole series of such a file"
    )


def _counted(tables: Iterable[pa.Table], advance: progress.Advance) -> Iterator[pa.Table]:
    done = 0
    for table in tables:
        yield table
        done += pc.sum(pc.less_equal(table["frame"], 1)).as_py()
        advance(done)


def _facts_through_ray(order: _Order, inputs: list[Input]) -> Iterator[pa.Table]:
    items = [as_item(part) for part in single_slices(inputs, _HEADERS_A_TASK)]
    return map_in_order(items, _facts, order, rule="predict: every header must be read", hint=_AGAIN)


def _facts(order: _Order, item: dict[str, Any]) -> pa.Table:
    return read_facts(part_of(item).inputs, order.without_preamble)


def _through_ray(order: _Order, parts: list[Part], kind: type[Prediction]) -> Iterator[list[Prediction]]:
    """Rows of each part, in turn, from one worker on each CPU; accelerators are shared among them."""
    items = [as_item(part) for part in parts]
    for table in map_in_order(items, _Worker, order, rule="predict: every batch must end", hint=_AGAIN):
        yield from_table(table, kind)


_AGAIN = "nothing was written, try again"


class _Worker:
    """One process of Ray Data."""

    def __init__(self, order: _Order) -> None:
        self._predictor = order.predictor()

    def __call__(self, item: dict[str, Any]) -> pa.Table:
        return as_table(self._predictor.predict(part_of(item)), self._predictor.row_kind)
