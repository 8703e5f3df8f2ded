"""Where a retraining stands, in its folder: reports.json and two states, the newest and the best.

Knows files and which report is best; it trains nothing. Rank 0 writes, everybody may read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from ich_ray.errors import IntegrityError
from ich_ray.progress import say
from ich_ray.results import Objective, Report, TrialResult
from ich_ray.storage import first_problem, read_json, write_json
from ich_ray.training.state import TrainingState

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["best_report", "keep", "newest", "read_reports", "state_file"]

_REPORTS = TypeAdapter(tuple[Report, ...])


def best_report(reports: list[Report], objective: Objective) -> Report | None:
    """The report with the best finite objective, the earliest of equals; None without any."""
    return TrialResult(number=0, objective=objective, parameters={}, reports=tuple(reports)).best_report


def state_file(folder: UPath, images_seen: int) -> UPath:
    """Where the state at a report lies."""
    return folder / f"state-{images_seen:012d}.safetensors"


def keep(folder: UPath, state: TrainingState, reports: list[Report], objective: Objective) -> None:
    """Write this report; of the states only the newest and the best stay."""
    state.save(state_file(folder, state.images_seen))
    write_json(folder / "reports.json", [report.model_dump(mode="json") for report in reports])
    best = best_report(reports, objective)
    kept = {state_file(folder, state.images_seen).name}
    if best is not None:
        kept.add(state_file(folder, best.images_seen).name)
    for file in [*folder.glob("state-*.safetensors")]:
        if file.name not in kept:
            file.unlink()


def read_reports(folder: UPath) -> list[Report]:
    """All reports so far, none before the first."""
    file = folder / "reports.json"
    try:
        return list(_REPORTS.validate_python(read_json(file))) if file.exists() else []
    except ValidationError as error:
        raise IntegrityError(
            f"{file}: must be a list of reports, got {first_problem(error)}; remove {folder} and retrain"
        ) from None


def newest(folder: UPath) -> tuple[TrainingState | None, list[Report]]:
    """The newest readable state with its report and those before it; else a fresh start."""
    reports = read_reports(folder)
    for last in range(len(reports), 0, -1):
        file = state_file(folder, reports[last - 1].images_seen)
        if file.exists():
            try:
                return TrainingState.load(file), reports[:last]
            except IntegrityError as error:
                say(f"  {error}")
    return None, []
