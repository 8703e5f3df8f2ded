"""The words of the report: what happened, what to beware of, and what has not been done yet.

Every sentence is made of figures that other stages computed; all that is judged here is whether a model is at chance.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ich_ray.assess.evaluation_notes import dataset_ranking_note
from ich_ray.data.folds import ranking_roles
from ich_ray.html_report.style import count, metric_name, number, percent
from ich_ray.statistics import metrics

if TYPE_CHECKING:
    from ich_ray.assess.evaluation import Evaluation
    from ich_ray.assess.interval_estimates import Estimate
    from ich_ray.html_report.inputs import Inputs
    from ich_ray.refit.confirmation import Confirmation
    from ich_ray.trial_records import TrialState

__all__ = ["Missing", "at_chance", "confirmed_on", "missing", "sentences", "warnings"]

_ENDINGS: dict[TrialState, str] = {
    "completed": "finished",
    "pruned": "were stopped early",
    "failed": "failed",
    "running": "have not ended",
}


@dataclass(frozen=True)
class Missing:
    """A part that the page cannot show yet, and the command that makes it."""

    part: str
    command: str


def missing(inputs: Inputs) -> list[Missing]:
    """Stages without their file, in the order to run them."""
    where = shlex.quote(str(inputs.search.files.root))
    data = shlex.quote(inputs.search.record.dataset_folder)
    found = []
    if inputs.best is None:
        found.append(Missing("A completed trial", f"ich-ray search {data} --space FILE.yaml --out {where} --resume"))
    for part, value, verb in (
        ("Retraining of the chosen trial", inputs.retraining, "retrain"),
        ("Calibration and operating point", inputs.calibration, "calibrate"),
        ("Evaluation on the test patients", inputs.evaluation, "evaluate"),
    ):
        if value is None:
            found.append(Missing(part, f"ich-ray {verb} {where}"))
    if inputs.evaluation is not None and inputs.predictions is None:
        found.append(Missing("Predictions of the test slices (predictions.parquet)", f"ich-ray evaluate {where}"))
    return [*found, Missing("This page again", f"ich-ray report {where}")] if found else []


def at_chance(evaluation: Evaluation) -> str | None:
    """Why the test figures are no better than a guess, or None.

    At chance: average precision at or under `chance_bound`, or an interval that reaches the prevalence.
    """
    precision = evaluation.metrics.get("average_precision")
    floor = evaluation.prevalence
    if precision is None or precision.value is None:
        return "The evaluation says that the model is at chance." if evaluation.at_chance else None
    found = f"average precision is {_figure(precision)} where a guess gives {number(floor)}"
    if evaluation.at_chance or metrics.at_chance(precision.value, floor):
        return f"The model is at chance: {found}. Do not use it."
    if precision.low is not None and precision.low <= floor:
        return f"The model cannot be told from chance: {found}. Do not use it."
    return None


def warnings(inputs: Inputs) -> list[str]:
    """What a reader must know before any figure, the gravest first."""
    found = (judge(inputs) for judge in (_chance, _few_positives, _openings, _stale, _unconfirmed, _running, _faults))
    return [warning for warning in found if warning]


def _chance(inputs: Inputs) -> str | None:
    if inputs.evaluation is not None:
        return at_chance(inputs.evaluation)
    if inputs.best is not None and inputs.best.at_chance:
        return f"Trial {inputs.best.number}, the best one, is at chance {inputs.search.objective.judged}."
    return None


def _few_positives(inputs: Inputs) -> str | None:
    """By the dataset, else by what the bundle's card remembers of it."""
    pooled = inputs.search.objective.networks > 1
    if inputs.dataset is not None:
        return dataset_ranking_note(inputs.dataset, pooled)
    roles = (inputs.card or {}).get("dataset", {}).get("roles", {})
    positives = {role: counts["positives"] for role, counts in roles.items() if isinstance(counts, dict)}
    ranking = ranking_roles(pooled)
    if not positives.keys() >= set(ranking):
        return None
    return metrics.ranking_note(
        sum(positives.values()), sum(positives[role] for role in ranking), where=" and ".join(ranking)
    )


def _openings(inputs: Inputs) -> str | None:
    opened = max(inputs.evaluation.opened if inputs.evaluation else 0, int((inputs.card or {}).get("openings", 0) or 0))
    if opened <= 1:
        return None
    return (
        f"The test patients were opened {opened} times: figures after the first time are optimistic, because choices "
        "may have followed them."
    )


def _stale(inputs: Inputs) -> str | None:
    if inputs.retraining is None or inputs.chosen is None or inputs.retraining.trial == inputs.chosen.number:
        return None
    became = "the confirmed one" if inputs.confirmation else "the best one"
    return (
        f"The model comes from trial {inputs.retraining.trial}, but trial {inputs.chosen.number} has become {became} "
        "since: retrain to use it."
    )


def _unconfirmed(inputs: Inputs) -> str | None:
    """A search that went on after its confirmation may have found better ones since."""
    again, best = inputs.confirmation, inputs.best
    if again is None or best is None or best.number in {candidate.trial for candidate in again.candidates}:
        return None
    return f"Trial {best.number} has become the best of the search since the confirmation: confirm again to compare it."


def _faults(inputs: Inputs) -> str | None:
    return f"{inputs.search.faults}." if inputs.search.faults else None


def _running(inputs: Inputs) -> str | None:
    running = inputs.search.count("running")
    return f"{running} trials have not ended: this page shows where the search stood." if running else None


def sentences(inputs: Inputs) -> list[str]:
    """The summary: what was searched, which trial won, what the model does on the test patients."""
    return [*_searched(inputs), *_won(inputs), *_tested(inputs)]


def _searched(inputs: Inputs) -> list[str]:
    search = inputs.search
    ended = [f"{count(search.count(state))} {words}" for state, words in _ENDINGS.items() if search.count(state)]
    return [
        f"This search tried {count(len(search.trials))} settings of a network that looks for intracranial haemorrhage "
        f"on single head-CT slices{': ' + ', '.join(ended) if ended else ''}."
    ]


def _won(inputs: Inputs) -> list[str]:
    if inputs.chosen is None:
        return ["No trial has completed, so there is no best one yet."]
    metric = metric_name(inputs.search.objective.metric)
    architecture = inputs.chosen.parameters.get("architecture")
    what = f"Trial {inputs.chosen.number}" + (f", a {architecture}," if architecture else "")
    again = inputs.confirmation
    best = "best estimated" if again and again.race else "best mean"
    first = (
        f"{what} had the {best} {metric} of the {len(again.candidates)} best trials when they were trained again "
        f"{confirmed_on(again)}"
        if again
        else f"{what} had the best {metric} {inputs.search.objective.judged}"
    )
    if inputs.retraining is None:
        return [f"{first}; it has not been retrained, so there is no model yet."]
    if inputs.retraining.trial != inputs.chosen.number:
        return [f"{first}; the model on this page is still that of trial {inputs.retraining.trial}."]
    if inputs.evaluation is None:
        return [f"{first} and was retrained; its test figures are not there yet."]
    return [f"{first} and was retrained and calibrated."]


def confirmed_on(confirmation: Confirmation) -> str:
    """What differed between the trainings of a candidate."""
    if confirmation.race:
        others = "other seeds" if confirmation.kind == "seeds" else "folds of the train and validation patients"
        return f"in a race of {confirmation.race.trainings} trainings with {others}"
    if confirmation.kind == "seeds":
        return f"with {confirmation.parts} other seeds"
    return f"on {confirmation.parts} folds of the train and validation patients"


def _tested(inputs: Inputs) -> list[str]:
    evaluation = inputs.evaluation
    if evaluation is None or evaluation.point is None:
        return []
    _, point = evaluation.point
    precision = evaluation.metrics.get("average_precision")
    said = [
        f"On {count(evaluation.slices)} slices of {count(evaluation.patients)} test patients, of which "
        f"{count(evaluation.positives)} show haemorrhage ({percent(evaluation.prevalence)}), it flags a slice when its "
        f"calibrated probability is {number(point.threshold)} or more.",
        f"So it flags {_share(point.sensitivity, evaluation.confidence)} of the slices with haemorrhage (sensitivity) "
        f"and does not flag {_share(point.specificity)} of those without it (specificity); of the slices that it "
        f"flags, {_share(point.ppv)} do show haemorrhage (PPV, at this prevalence).",
    ]
    if precision is not None:
        said.append(
            f"Its average precision is {_figure(precision)}; a guess would reach {number(evaluation.prevalence)}."
        )
    return said


def _share(interval: Estimate, confidence: float | None = None) -> str:
    if interval.value is None:
        return "an undefined share"
    if interval.low is None or interval.high is None:
        return percent(interval.value)
    name = f"{100 * confidence:.0f}\u00a0% interval " if confidence else ""
    return f"{percent(interval.value)} ({name}{100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _figure(interval: Estimate) -> str:
    if interval.low is None or interval.high is None:
        return number(interval.value)
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"
