"""The report: one HTML file of a search, the model that came out of it, and what is missing.

Words, tables and plots are made elsewhere, and so is the file around them (html_page.py); this puts them together.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from upath import UPath

from ich_ray.data.neighbors import without_neighbors
from ich_ray.errors import ConfigError
from ich_ray.html_report import groups, performance, summary, tables, trials
from ich_ray.html_report.confidence_bands import precision_recall_band, roc_band
from ich_ray.html_report.gallery import gallery
from ich_ray.html_report.html_page import document
from ich_ray.html_report.importance import importance_bars, importances
from ich_ray.html_report.inputs import gather
from ich_ray.html_report.parallel_coordinates import parallel_coordinates
from ich_ray.html_report.reliability_diagram import reliability
from ich_ray.html_report.studies import study_content, study_figures
from ich_ray.html_report.style import STATE_COLORS, metric_name, metric_title, moment, number, setting
from ich_ray.html_report.time_spent import spent_bars, spent_facts
from ich_ray.html_report.timeline import slots, timeline
from ich_ray.refit.retrain_record import SEED_RULE
from ich_ray.storage import check_file, locate, write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from ich_ray.assess.evaluation import Evaluation
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.html_report.inputs import Inputs
    from ich_ray.refit.confirmation import Confirmation
    from ich_ray.refit.retrain_record import Retraining
    from ich_ray.results import SearchResult
    from ich_ray.storage import Location
    from ich_ray.trial_records import TrialResult

__all__ = ["MOST_TRIALS", "render", "report"]

# Best first. More lines than this neither read nor draw well, and the file must stay under 8 MB; the page says so.
MOST_TRIALS = 400


def report(
    search: Location | Sequence[Location], dataset: Location | None = None, out: Location | None = None
) -> UPath:
    """Write SEARCH/final/report.html, whole or not at all, and return where it is.

    It may be called at any time: stages that have not run are named on the page with the command that runs them.

    Args:
        search: the search folder; of several one page shows them side by side, with the others compared with the first.
        dataset: where its dataset lies, or that of the first; if not given where search.json says, but at no address
            that only it names.
        out: another file to write; if not given of several searches `final/side_by_side.html` of the first.

    Raises:
        ConfigError: there is no search, or no dataset at `dataset`; or `out` cannot be written.
        IntegrityError: a file of the search is damaged; it is named.
    """
    target = _target(out)
    searches = [search] if isinstance(search, str | os.PathLike | UPath) else [*search]
    if len(searches) != 1:
        from ich_ray.html_report.side_by_side_page import report_side_by_side

        return report_side_by_side(searches, dataset, target)
    inputs = gather(searches[0], dataset)
    path = target or inputs.search.files.report
    write_bytes(path, render(inputs).encode())
    return path


def _target(out: Location | None) -> UPath | None:
    """The file that was asked for, of a name that no record or table of a search has."""
    if out is None:
        return None
    path = locate(out)
    if path.suffix not in {".html", ".htm"}:
        raise ConfigError(f"--out {out}: must be a file that ends in .html, got another name; name one")
    check_file(path, "--out")
    return path


def render(inputs: Inputs) -> str:
    """The page as text."""
    mattered = importances(inputs.search, _compared_at(inputs.search))
    figures = _figures(inputs) | ({"importance": importance_bars(mattered)} if mattered.found else {})
    effects = [name.removeprefix("effect ") for name in figures if name.startswith("effect ")]
    return document("page.html.j2", figures, {**_content(inputs), "mattered": mattered, "effects": effects})


def _figures(inputs: Inputs) -> dict[str, go.Figure]:
    """Every figure whose data are there, by its name on the page."""
    return {
        **_search_figures(inputs),
        **_test_figures(inputs),
        **study_figures(inputs),
        **_retraining_figures(inputs),
    }


def _search_figures(inputs: Inputs) -> dict[str, go.Figure]:
    search = inputs.search
    shown, space, objective = search.ranked()[:MOST_TRIALS], search.record.space, search.objective
    if not any(trial.reports for trial in shown):
        return {}
    chance = search.record.prevalence if objective.metric == "average_precision" else None
    best = inputs.best.number if inputs.best else None
    found = {
        "curves": trials.learning_curves(shown, objective, trials.rungs(space), best, chance),
        "timeline": timeline(_begun(search), numbered=len(search.trials) <= MOST_TRIALS),
    }
    if spent := spent_bars(shown):
        found["spent"] = spent
    effects = trials.parameter_effects(shown, space, objective)
    found.update({f"effect {name}": figure for name, figure in effects.items()})
    if effects:
        found["parallel"] = parallel_coordinates(shown, space, objective, best)
    return found


def _compared_at(search: SearchResult) -> int:
    """Images that most trials saw: the first rung, else a whole budget."""
    rungs = trials.rungs(search.record.space)
    return rungs[0] if rungs else max((trial.images_seen for trial in search.trials), default=0)


def _begun(search: SearchResult) -> list[TrialResult]:
    """Trials that were started: one that failed before that has no place in time."""
    return [trial for trial in search.trials if trial.started]


def _test_figures(inputs: Inputs) -> dict[str, go.Figure]:
    predictions, evaluation = inputs.predictions, inputs.evaluation
    if predictions is None or evaluation is None or not 0 < predictions.labels.sum() < len(predictions.labels):
        return {}
    data, patients = (predictions.labels, predictions.probabilities), predictions.patients
    point = evaluation.point[1] if evaluation.point else None
    found = {
        "precision-recall": performance.precision_recall(*data, point, precision_recall_band(*data, patients)),
        "roc": performance.roc(*data, point, roc_band(*data, patients)),
        "reliability": reliability(*data),
        "histogram": performance.histogram(*data, point.threshold if point else None),
    }
    if point is not None:
        found["confusion"] = performance.confusion_matrix(point.confusion)
    return found


def _retraining_figures(inputs: Inputs) -> dict[str, go.Figure]:
    retraining = inputs.retraining
    if retraining is None or not retraining.reports:
        return {}
    metric = inputs.search.objective.metric if retraining.patients == "train" else "train_loss"
    return {"retraining": trials.retraining_curve(retraining.reports, metric, retraining.best_images_seen)}


def _content(inputs: Inputs) -> dict[str, Any]:
    """What the template shows besides figures."""
    return {
        "name": inputs.search.record.name,
        "made": moment(time.time()),
        "sentences": summary.sentences(inputs),
        "leaks": inputs.search.record.leak,
        "warnings": summary.warnings(inputs),
        "missing": summary.missing(inputs),
        "intended_use": _texts(inputs, "intended_use"),
        "limitations": _texts(inputs, "limitations"),
        "gallery": gallery(inputs),
        **_test_content(inputs.evaluation),
        **study_content(inputs),
        **_search_content(inputs),
        **_confirmation_content(inputs.confirmation),
        **_dataset_content(inputs),
        **_provenance_content(inputs),
    }


def _test_content(evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {"evaluation": None, "free_rows": [], "groups": [], "points": [], "hundred": []}
    points = evaluation.operating_points.items()
    return {
        "evaluation": evaluation,
        "free_rows": [*tables.figures(evaluation), *tables.label_figures(evaluation)],
        "groups": groups.group_tables(evaluation),
        "points": [(name, point, tables.operating_figures(evaluation, point)) for name, point in points],
        "hundred": tables.of_hundred(evaluation.point[1].confusion) if evaluation.point else [],
    }


def _search_content(inputs: Inputs) -> dict[str, Any]:
    search, best = inputs.search, inputs.best
    ranked, metric = search.ranked(), search.objective.metric
    slot_count = len(set(slots(_begun(search)).values()))
    return {
        "best": best,
        "metric": metric_name(metric),
        "metric_title": metric_title(metric),
        "judged": search.objective.judged,
        "selection": number(best.value if best else None, 4),
        "states": {state: search.count(state) for state in STATE_COLORS},
        "trial_count": len(ranked),
        "most_trials": MOST_TRIALS,
        "trials": tables.trial_table(ranked[:MOST_TRIALS], best.number if best else None, inputs.search.p_best),
        "slot_count": slot_count,
        "timeline_px": 110 + min(30 * slot_count, 900),
    }


def _confirmation_content(confirmation: Confirmation | None) -> dict[str, Any]:
    if confirmation is None:
        return {"confirmation": []}
    return {
        "confirmation": tables.confirmation_rows(confirmation),
        "confirmed_on": summary.confirmed_on(confirmation),
        "confirmation_images": confirmation.images,
        "raced": confirmation.race is not None,
    }


def _dataset_content(inputs: Inputs) -> dict[str, Any]:
    dataset = inputs.dataset
    if dataset is None:
        return {"dataset_problem": inputs.dataset_problem}
    return {
        "dataset_problem": "",
        "accounting": tables.accounting(dataset),
        "reasons": sorted(dataset.manifest.reasons.items(), key=lambda reason: -reason[1]),
        "roles": tables.roles(dataset),
        "subtypes": list(dataset.manifest.labels.items()),
        "flags": tables.flags(dataset),
        "data_facts": tables.data_facts(dataset),
        "data_notes": (*dataset.manifest.notes, *_alone(inputs.search, dataset)),
    }


def _alone(search: SearchResult, dataset: PreparedDataset) -> list[str]:
    """What trials that see neighbors cannot see in this dataset."""
    if not any(trial.parameters.get("neighbors") for trial in search.trials):
        return []
    alone = without_neighbors(dataset.neighbors, np.arange(len(dataset)))
    return [f"{alone:,} of {len(dataset):,} slices have no neighbors in their series"] if alone else []


def _provenance_content(inputs: Inputs) -> dict[str, Any]:
    record = inputs.search.record
    return {
        "provenance": tables.provenance_facts(inputs),
        "versions": list(record.versions.items()),
        "checklist": list((inputs.card or {}).get("checklist", {}).items()),
        "cost": tables.cost_facts(inputs.search),
        "spent": spent_facts(inputs.search),
        **_retraining_content(inputs.retraining),
        "calibration": tables.calibration_facts(inputs.calibration) if inputs.calibration else [],
        "chosen": inputs.chosen,
        "winner": [(name, setting(value)) for name, value in inputs.chosen.parameters.items()] if inputs.chosen else [],
        "space": yaml.safe_dump(record.space, sort_keys=False, default_flow_style=None, width=100),
    }


def _retraining_content(retraining: Retraining | None) -> dict[str, Any]:
    if retraining is None:
        return {"retraining": [], "seeds": [], "validated": True}
    spread = retraining.spread
    return {
        "retraining": tables.retraining_facts(retraining),
        "seeds": tables.seed_rows(retraining),
        "seed_spread": str(spread) if spread else "",
        "seed_rule": SEED_RULE,
        "validated": retraining.patients == "train",
        "rehearsed": bool(retraining.rehearsal),
    }


def _texts(inputs: Inputs, key: str) -> list[str]:
    """A text of the bundle's card, which may be one or several."""
    value = (inputs.card or {}).get(key) or []
    return [value] if isinstance(value, str) else [str(text) for text in value]
