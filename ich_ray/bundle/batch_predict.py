"""`ich-ray predict`: any number of files through one process, or many through Ray Data.

The bundle and its rows are made elsewhere; this chooses who works and writes the file. Each Ray worker loads the bundle
once and holds one batch at a time, and rows come back in the order of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ich_ray import progress
from ich_ray.bundle.bundle import OPERATING_POINT, load_bundle
from ich_ray.bundle.prediction import Prediction, Predictor, Studies, StudyPrediction, list_inputs
from ich_ray.bundle.table_writer import as_table, check_suffix, writing_rows
from ich_ray.errors import ConfigError
from ich_ray.ray_data import map_in_order
from ich_ray.runtime import connected
from ich_ray.storage import Location, check_file, check_folder, locate
from ich_ray.training.inference import EVALUATION_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ich_ray.bundle.prediction import Input

__all__ = ["Totals", "predict"]

# Below this one process is done before Ray has started its workers (about 20 s with theirs).
_WORTH_RAY = 5000


@dataclass(frozen=True)
class Totals:
    """How many inputs there were, and what became of them.

    Attributes:
        cases: slices with a probability, or by study, studies with one.
        positive: of these.
        rejected: files.
    """

    inputs: int
    cases: int
    positive: int
    rejected: int


@dataclass(frozen=True)
class _Order:
    """What every worker is told; plain values, as it travels through Ray."""

    bundle: str
    point: str
    heatmaps: str | None
    without_preamble: bool = False

    def predictor(self) -> Predictor:
        bundle = load_bundle(self.bundle)
        if self.heatmaps is None:
            return Predictor(bundle, self.point, without_preamble=self.without_preamble)
        from ich_ray.bundle.grad_cam import HeatMaps

        maps = HeatMaps(bundle, locate(self.heatmaps))
        return Predictor(bundle, self.point, maps, without_preamble=self.without_preamble)


def predict(
    bundle: Location,
    paths: list[Location],
    out: Location,
    *,
    point: str = OPERATING_POINT,
    by: Literal["slice", "study"] = "slice",
    heatmaps: Location | None = None,
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
        by: a row for each slice, or for each study with its most probable slice (rejected files keep their own).
        heatmaps: a folder for a Grad-CAM picture of each accepted slice.
        without_preamble: read files that begin with their meta information, too.
        address: a Ray cluster that sees the same files; many files use Ray on this machine anyway.

    Raises:
        ConfigError: a path or the bundle does not exist, nothing was given, there is no such operating point, or `out`
            has another suffix, or one of the places cannot be written.
        IntegrityError: the bundle is damaged.
    """
    target = locate(out)
    check_suffix(target)
    check_file(target, "--out")
    if heatmaps is not None:
        check_folder(locate(heatmaps), "--heatmaps")
    pictures = None if heatmaps is None else str(locate(heatmaps))
    order = _Order(str(locate(bundle)), point, pictures, without_preamble)
    predictor, inputs = order.predictor(), list_inputs(paths)
    if target in map(locate, paths):
        raise ConfigError(f"--out {target}: a file that is no input must be given, got an input; name another")
    many = address is not None or len(inputs) >= _WORTH_RAY
    batches = _through_ray(order, inputs, address) if many else predictor.stream(inputs)
    cases = positive = rejected = done = 0
    studies, kind = Studies(), Prediction if by == "slice" else StudyPrediction
    with progress.bar("Predicting", len(inputs), "slices") as advance, writing_rows(target, kind) as append:
        for rows in batches:
            rejected += sum(bool(row.reason) for row in rows)
            done += len(rows)
            if by == "slice":
                append(rows)
                cases, positive = _counted(cases, positive, rows)
            else:
                studies.add(rows)
            advance(done, f"{rejected} rejected")
        if studies.repeated:
            progress.say(f"  {studies.repeated} files repeat a slice of their study and are not counted again")
        gathered = studies.rows()
        append(gathered)
        cases, positive = _counted(cases, positive, gathered)
    return Totals(len(inputs), cases, positive, rejected)


def _counted(cases: int, positive: int, rows: Sequence[Prediction | StudyPrediction]) -> tuple[int, int]:
    return cases + sum(not row.reason for row in rows), positive + sum(row.decision == "positive" for row in rows)


def _through_ray(order: _Order, inputs: list[Input], address: str | None) -> Iterator[list[Prediction]]:
    """Rows in the order of the inputs, from one worker on each CPU; accelerators are shared among them."""
    chunks = [inputs[start : start + EVALUATION_BATCH] for start in range(0, len(inputs), EVALUATION_BATCH)]
    items = [{"files": [file for file, _ in chunk], "reasons": [reason for _, reason in chunk]} for chunk in chunks]
    rule, hint = "predict: every batch must end", "nothing was written, try again"
    with connected(address):
        for table in map_in_order(items, _Worker, order, rule=rule, hint=hint):
            yield [Prediction(**row) for row in table.to_pylist()]


class _Worker:
    """One process of Ray Data."""

    def __init__(self, order: _Order) -> None:
        self._predictor = order.predictor()

    def __call__(self, chunk: dict[str, Any]) -> Any:
        rows = self._predictor.decide(*self._predictor.read(list(zip(chunk["files"], chunk["reasons"], strict=True))))
        return as_table(rows, Prediction)
