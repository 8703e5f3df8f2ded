"""The tables of the report as rows of text, ready for the template, which escapes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ich_ray.assess.ensemble_gain import ensemble_changes
from ich_ray.assess.interval_estimates import RATIOS
from ich_ray.assess.paired_changes import format_change
from ich_ray.assess.tta_gain import tta_changes
from ich_ray.html_report.style import count, duration, metric_title, metric_words, moment, number, percent, setting
from ich_ray.html_report.trials import varied
from ich_ray.statistics.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ich_ray.assess.calibration import Calibration
    from ich_ray.assess.evaluation import Evaluation
    from ich_ray.assess.interval_estimates import Counts, Estimate, Figures, PointFigures
    from ich_ray.assess.study_figures import StudyFigures
    from ich_ray.bundle.card import EnsembleGain, TtaGain
    from ich_ray.bundle.study_calibration import StudyCalibration
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.html_report.inputs import Inputs
    from ich_ray.refit.confirmation import Confirmation
    from ich_ray.refit.retrain_record import Retraining
    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult

__all__ = [
    "FigureRow",
    "TrialTable",
    "accounting",
    "calibration_facts",
    "confirmation_rows",
    "cost_facts",
    "data_facts",
    "figures",
    "flags",
    "label_figures",
    "of_hundred",
    "of_studies",
    "operating_figures",
    "provenance_facts",
    "retraining_facts",
    "roles",
    "seed_rows",
    "trial_table",
]

_ON_NO_SCALE = {name for name, metric in METRICS.items() if metric.better is None}  # of 0 to 1
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class FigureRow:
    """A test figure beside what chance gives.

    Attributes:
        at: places of value, low, high and floor on a scale of 0 to 100, for the little drawing.
        clears: whether the whole interval is better than the floor; None when that cannot be said.
    """

    name: str
    words: str
    value: str
    interval: str
    floor: str
    at: dict[str, float]
    clears: bool | None


def _row(name: str, interval: Estimate, floor: float | None) -> FigureRow:
    lower = name in METRICS and METRICS[name].better == "min"
    bounds = (interval.low, interval.high)
    known = {"value": interval.value, "low": interval.low, "high": interval.high, "floor": floor}
    edge = interval.high if lower else interval.low
    clears = None if edge is None or floor is None else (edge < floor if lower else edge > floor)
    return FigureRow(
        name=metric_title(name),
        words=metric_words(name),
        value=number(interval.value),
        interval="–" if None in bounds else f"{number(interval.low)} to {number(interval.high)}",
        floor=number(floor),
        at={key: round(100 * min(max(value, 0.0), 1.0), 2) for key, value in known.items() if value is not None},
        clears=clears,
    )


def figures(evaluation: Evaluation | StudyFigures) -> list[FigureRow]:
    """Figures of slices, or of studies, that need no threshold, in the order of evaluation.json.

    Beside the calibration error stands what a perfect model shows, as chance has no meaning there.
    """
    rows = {name: _row(name, interval, evaluation.floors.get(name)) for name, interval in evaluation.metrics.items()}
    null = evaluation.ece_null
    if "ece" in rows and null is not None:
        perfect = f"perfect: {number(null.low)} to {number(null.high)}"
        rows["ece"] = replace(rows["ece"], floor=perfect)
    for name in _ON_NO_SCALE & rows.keys():
        rows[name] = replace(rows[name], at={})
    return [*rows.values()]


def label_figures(evaluation: Evaluation) -> list[FigureRow]:
    """Figures over all labels of slices."""
    return [_row(name, interval, None) for name, interval in evaluation.label_metrics.items()]


def of_studies(rows: Iterable[FigureRow]) -> list[FigureRow]:
    """The same rows, with words about studies."""
    return [replace(row, words=row.words.replace("slices", "studies")) for row in rows]


def operating_figures(evaluation: Figures, point: PointFigures) -> list[FigureRow]:
    """The figures of one threshold, with their floors.

    A guess that flags the same share of slices sets the floor of those without one. Such a guess has a sensitivity of
    the share it flags, a specificity of the rest and an NPV of 1 - prevalence.
    """
    called, all_cases = point.confusion.tp + point.confusion.fp, sum(point.confusion.model_dump().values())
    flagged = called / max(all_cases, 1)
    floors = {"sensitivity": flagged, "specificity": 1 - flagged, "npv": 1 - evaluation.prevalence, **evaluation.floors}
    rows = [_row(name, getattr(point, name), floors.get(name)) for name in RATIOS]
    if point.stated is not None:
        rest = 1 - point.stated.prevalence
        for name, figure, floor in (("ppv", point.stated.ppv, 1 - rest), ("npv", point.stated.npv, rest)):
            row = _row(name, figure, floor)
            rows.append(replace(row, name=f"{row.name} at a prevalence of {number(point.stated.prevalence)}"))
    return rows


def of_hundred(confusion: Counts) -> list[tuple[str, str, int]]:
    """The outcomes of 100 slices: kind, exact percentage, whole slices (largest remainders)."""
    held = {
        "haemorrhage, flagged": confusion.tp,
        "haemorrhage, missed": confusion.fn,
        "false alarm": confusion.fp,
        "rightly not flagged": confusion.tn,
    }
    total = max(sum(held.values()), 1)
    whole = {kind: 100 * slices // total for kind, slices in held.items()}
    by_remainder = sorted(held, key=lambda kind: -(100 * held[kind] % total))
    for kind in by_remainder[: 100 - sum(whole.values())]:
        whole[kind] += 1
    return [(kind, percent(slices / total), whole[kind]) for kind, slices in held.items()]


@dataclass(frozen=True)
class TrialTable:
    """All trials, best first. `same` are the parameters that do not differ; `columns` those that do.

    `compared` is whether the chance of being the best is known of some.
    """

    columns: list[str]
    compared: bool
    rows: list[dict[str, Any]]
    same: Facts


def trial_table(trials: Sequence[TrialResult], best: int | None, p_best: Mapping[int, float]) -> TrialTable:
    columns = varied(trials)
    first = trials[0].parameters if trials else {}
    return TrialTable(
        columns=columns,
        compared=bool(p_best),
        rows=[
            {
                "number": trial.number,
                "p_best": f"{p_best[trial.number]:.0%}" if trial.number in p_best else "–",
                "best": trial.number == best,
                "state": trial.state,
                "reason": f"{trial.reason}: {trial.detail}" if trial.detail else trial.reason,
                "objective": number(trial.value, 4),
                "at_chance": trial.at_chance,
                "images": count(trial.images_seen),
                "seconds": duration(trial.reports[-1].elapsed_s) if trial.reports else "–",
                "attempts": trial.attempts,
                "parameters": [setting(trial.parameters[name]) if name in trial.parameters else "" for name in columns],
            }
            for trial in trials
        ],
        same=[(name, setting(value)) for name, value in first.items() if name not in columns],
    )


def confirmation_rows(confirmation: Confirmation) -> list[dict[str, Any]]:
    """The candidates of a confirmation: selection score, then mean, spread and n.

    They are in the order of the search.
    """
    return [
        {
            "number": candidate.trial,
            "chosen": candidate.trial == confirmation.chosen,
            "selection": number(candidate.selection_value, 4),
            "mean": number(candidate.mean, 4),
            "spread": number(candidate.spread, 4),
            "n": sum(value is not None for value in candidate.values),
            "failed": candidate.values.count(None),
            "estimate": number(candidate.estimate, 4),
            "p_best": "–" if candidate.p_best is None else f"{candidate.p_best:.0%}",
            "dropped": "–" if candidate.dropped is None else count(candidate.dropped.trainings),
        }
        for candidate in confirmation.candidates
    ]


def accounting(dataset: PreparedDataset) -> Facts:
    """Every listed file, by what became of it."""
    manifest = dataset.manifest
    parts = ("accepted", "rejected", "duplicate", "excluded")
    return [("listed", count(manifest.listed)), *((part, count(getattr(manifest, part))) for part in parts)]


def roles(dataset: PreparedDataset) -> list[tuple[str, str, str, str, str]]:
    """Role, slices, patients, positives, prevalence; the total last."""
    held = dataset.manifest.roles
    rows = [(str(name), counts.slices, counts.patients, counts.positives) for name, counts in held.items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), sum(row[3] for row in rows)))
    return [
        (name, count(slices), count(patients), count(positives), percent(positives / slices) if slices else "–")
        for name, slices, patients, positives in rows
    ]


def flags(dataset: PreparedDataset) -> list[tuple[str, int]]:
    """Accepted slices by flag, the commonest first."""
    found: Counter[str] = Counter()
    for text in dataset.column("flags"):
        found.update(flag.strip() for flag in str(text or "").split(",") if flag.strip())
    return found.most_common()


def data_facts(dataset: PreparedDataset) -> Facts:
    manifest = dataset.manifest
    windows = ", ".join(
        f"{window.name} {window.center_hu - window.width_hu / 2:g} to {window.center_hu + window.width_hu / 2:g} HU"
        for window in manifest.windows
    )
    return [
        ("Windows", windows.replace("-", "−")),
        ("Image size", f"{manifest.size} × {manifest.size} pixels"),
        ("Seed of the roles", str(manifest.seed)),
        ("Prepared", moment(manifest.created)),
    ]


def provenance_facts(inputs: Inputs) -> Facts:
    record = inputs.search.record
    card = inputs.card or {}
    weights = card.get("weights") or {}
    facts = [
        ("Search", record.name),
        ("Started", moment(record.created)),
        ("Dataset fingerprint", record.fingerprint),
        ("Seed of the search", str(record.seed)),
        ("Trials asked for", count(asked(inputs.search))),
    ]
    if inputs.chosen is not None:
        facts.append((f"Seed of trial {inputs.chosen.number}", str(inputs.chosen.seed)))
    if weights:
        facts.append((f"SHA-256 of {weights.get('file', 'the weights')}", str(weights.get("sha256", "–"))))
    if of_sequence := (card.get("sequence") or {}).get("weights"):
        facts.append((f"SHA-256 of {of_sequence['file']}", str(of_sequence["sha256"])))
    if inputs.evaluation is not None:
        facts.append(("Test patients opened", f"{inputs.evaluation.opened} ×, {moment(inputs.evaluation.time)}"))
        facts.append(
            (
                "Intervals",
                f"{100 * inputs.evaluation.confidence:.0f} %, {count(inputs.evaluation.resamples)} bootstrap samples "
                "of patients, exact ones of shares where these cannot tell",
            )
        )
    return facts


def asked(search: SearchResult) -> int:
    """Trials asked for: the newest amendment that names a number wins."""
    numbers = [amendment["trials"] for amendment in search.record.amendments if "trials" in amendment]
    return int(numbers[-1]) if numbers else search.record.trials


def cost_facts(search: SearchResult) -> Facts:
    """What the trials cost, and the rate while they trained."""
    trials = search.trials
    images = sum(trial.images_seen for trial in trials)
    training_s = sum(trial.reports[-1].elapsed_s for trial in trials if trial.reports)
    ends = [trial.ended for trial in trials if trial.ended is not None]
    starts = [trial.started for trial in trials if trial.started]
    return [
        ("Images seen in all trials", count(images)),
        ("From first start to last end", duration(max(ends) - min(starts)) if starts and ends else "–"),
        ("Training, summed over trials", duration(training_s)),
        ("Accelerator time, summed over trials", duration(sum(trial.cost_gpu_s for trial in trials))),
        ("Images per second of training", f"{images / training_s:,.0f}" if training_s else "–"),
        ("Computed on", "; ".join(dict.fromkeys(str(trial.setup) for trial in trials if trial.setup)) or "–"),
    ]


def retraining_facts(retraining: Retraining) -> Facts:
    budget = f"{count(retraining.images)} images: {retraining.budget}" if retraining.images else ""
    return [
        ("Trial", str(retraining.trial)),
        ("Patients who trained", retraining.patients.replace("+", " and ")),
        *([("Budget of a seed", budget)] if budget else []),
        ("Weights kept at", f"{count(retraining.best_images_seen)} images"),
        ("Stopped early", "yes" if retraining.stopped_early else "no"),
        ("Workers", str(retraining.workers)),
        ("Computed on", str(retraining.setup or retraining.device)),
        ("Time", duration(retraining.seconds)),
    ]


def seed_rows(retraining: Retraining) -> list[dict[str, Any]]:
    """The seeds that validation patients could measure, in the order in which they trained."""
    return [
        {
            "seed": run.seed,
            "kept": not retraining.rehearsal and run.seed == retraining.seed,
            "value": number(run.value, 4),
            "kept_at": count(run.best_images_seen) if run.value is not None else "–",
            "failed": run.reason,
        }
        for run in (retraining.rehearsal or retraining.runs)
    ]


_CHANGED = {"log_loss": "log loss", "average_precision": "average precision", "roc_auc": "ROC AUC"}


def _tta_facts(gain: TtaGain | None) -> Facts:
    if gain is None:
        return []
    return [
        (f"Test-time augmentation, {_CHANGED[name]}", format_change(one)) for name, one in tta_changes(gain).items()
    ]


def _ensemble_facts(gain: EnsembleGain | None) -> Facts:
    if gain is None:
        return []
    return [
        *((f"Ensemble, {_CHANGED[name]}", format_change(one)) for name, one in ensemble_changes(gain).items()),
        ("Ensemble, ms a slice", f"{number(gain.single_ms)} -> {number(gain.ensemble_ms)}"),
    ]


def _study_facts(studies: StudyCalibration | None) -> Facts:
    if studies is None:
        return []
    fitted = studies.labels["any"]
    scaled = f"temperature {number(fitted.temperature)}, bias {number(fitted.bias)}"
    what = f"{count(fitted.studies)} studies, {count(fitted.positives)} positive; "
    return [
        ("By study", what + (scaled if fitted.scaled_by == "own" else "too few to fit probabilities of studies")),
        *(("Note", note) for note in fitted.notes),
    ]


def calibration_facts(calibration: Calibration) -> Facts:
    return [
        (
            "Fitted on",
            f"{count(calibration.slices)} slices of {count(calibration.patients)} patients, "
            f"{count(calibration.positives)} positive ({percent(calibration.prevalence)})",
        ),
        ("Method", calibration.method),
        ("Temperature", number(calibration.temperature)),
        *([("Bias", number(calibration.bias))] if calibration.bias else []),
        ("Shift of the logit for the class weights", number(calibration.prior_shift)),
        ("Log loss before, plain sigmoid", number(calibration.log_loss_before, 4)),
        ("Log loss after", number(calibration.log_loss_after, 4)),
        *_tta_facts(calibration.tta_gain),
        *_ensemble_facts(calibration.ensemble_gain),
        *(("Note", note) for note in calibration.notes),
        *(
            (
                name.capitalize(),
                f"{count(subtype.positives)} positive slices of {count(subtype.patients)} patients; "
                + ("scaled as any is" if subtype.scaled_by == "any" else f"temperature {number(subtype.temperature)}"),
            )
            for name, subtype in calibration.subtypes.items()
        ),
        *_study_facts(calibration.studies),
    ]
