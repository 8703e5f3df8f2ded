"""Where each report went wrong: the figure that shows it, the rule here that catches it.

The sentences are ours; every number in them is computed, from what was published or from what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ich_ray.html_report.style import count, number, percent
from ich_ray.published.systems import REPORT_A, REPORT_B
from ich_ray.statistics.metrics import floors

if TYPE_CHECKING:
    from ich_ray.published.reproduction import Reproduction
    from ich_ray.published.system_results import System

__all__ = ["Gate", "gates"]


class Gate(NamedTuple):
    """One wrong step."""

    report: str
    step: str
    what: str
    shown: str
    gate: str


def gates(done: Reproduction) -> list[Gate]:
    """Every wrong step, in the order in which each report took them."""
    by_name = {system.name.removesuffix(", again").replace(", again,", ","): system for system in done.systems}
    leaky, honest = by_name["report B, split by slice"], by_name["report B, split by patient"]
    return [*_of_a(done, by_name["report A"]), *_of_b(leaky, honest)]


def _of_a(done: Reproduction, again: System) -> list[Gate]:
    floor = floors(REPORT_B.prevalence)
    stuck = sum(row["at_chance"] for row in done.trials_a)
    fitted, failed = done.probed
    return [
        Gate(
            "A",
            "learning rate",
            "one rate each, from overfitting ten minibatches, for all slices and both optimizers",
            f"{failed} of {fitted} combinations failed on ten minibatches here, and {stuck} of {len(done.trials_a)} "
            "winners were at chance on validation patients; the best has AP "
            f"{number(again.average_precision[0])} on test patients, where chance gives "
            f"{number(again.floors['average_precision'])}",
            "rates are searched on validation patients; what is at chance or diverges says so in the ledger",
        ),
        Gate(
            "A",
            "judging",
            "accuracy was compared with nothing",
            f"its {percent(REPORT_A.accuracy)} is the majority class ({percent(floor['accuracy'])})",
            "floors beside every figure; trials are ranked by average precision",
        ),
        Gate(
            "A",
            "reading the curve",
            "a flat precision was read as a property of the model",
            f"its precision of {number(REPORT_A.precision, 2)} at any recall is the prevalence "
            f"({number(floor['ppv'])}): the ranking was random",
            "a trial whose average precision is at most 1.5 times the prevalence is marked at chance",
        ),
        Gate(
            "A",
            "conclusion",
            "transfer from ImageNet was blamed, and the CNN called better",
            f"two systems at a floor of {number(floor['average_precision'])} differ by chance",
            "confirmation on folds, intervals from patients, and a note when positives are too few to rank",
        ),
    ]


def _of_b(leaky: System, honest: System) -> list[Gate]:
    floor = floors(REPORT_B.prevalence)
    m10, holdout = REPORT_B.candidates[9], REPORT_B.holdout
    mean, deviation = REPORT_B.cross_validated
    everything = [row for row in REPORT_B.candidates if row.decisions.specificity < 0.05]
    nothing = [row for row in REPORT_B.candidates if not row.sensitivity]
    return [
        Gate(
            "B",
            "split",
            "the holdout was drawn by image",
            f"{count(leaky.leaked)} of {count(leaky.patients)} test patients were also trained on; AP "
            f"{number(leaky.average_precision[0])} by slice and {number(honest.average_precision[0])} by patient",
            "roles by patient; a split by slice is named a leak on everything that follows",
        ),
        Gate(
            "B",
            "metric",
            "PPV was called specificity",
            f"m10's {number(m10.printed)} gives its F2 of {number(m10.f2)} only as a PPV; its specificity was "
            f"{number(m10.decisions.specificity)}",
            "figures come from one confusion matrix, each with its formula, and equal scikit-learn's in the tests",
        ),
        Gate(
            "B",
            "quick evaluation",
            "candidates that decide nothing were scored like others",
            f"{', '.join(row.name for row in everything)} call nearly everything positive and reach "
            f"{number(max(row.f2 for row in everything))}, {', '.join(row.name for row in nothing)} nothing; the floor "
            f"of F2 is {number(floor['f2'])}",
            "the floor of calling everything positive stands beside F2; ranking does not depend on one half",
        ),
        Gate(
            "B",
            "cross-validation",
            "a mean at the floor was taken as a confirmation",
            f"{number(mean)} ± {number(deviation)} against {number(floor['f2'])}: "
            f"{number((mean - floor['f2']) / deviation, 2)} deviations",
            "confirmation compares means with their spread, and average precision needs no threshold to be stable",
        ),
        Gate(
            "B",
            "threshold",
            f"{number(REPORT_B.threshold)} was tuned on slices that the network was trained on, on outputs that class "
            "weights had moved",
            f"split by patient, log loss of such outputs is {number(honest.uncorrected_log_loss)}, corrected and "
            f"calibrated {number(honest.log_loss)}; F2 {number(honest.trained.confusion.f_beta())} with its threshold, "
            f"{number(honest.ours.confusion.f_beta())} with ours",
            "probabilities and thresholds are fitted on calibration patients, of whom nothing was trained or chosen",
        ),
        Gate(
            "B",
            "result",
            "F2 and accuracy alone were given",
            f"its counts say PPV {number(holdout.ppv)}, specificity {number(holdout.specificity)}: of ten alarms "
            f"{number(10 * (1 - holdout.ppv), 1)} are false",
            "every figure of a threshold with its interval and floor, once, on patients opened and counted",
        ),
    ]
