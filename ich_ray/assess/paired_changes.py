"""What one way to probabilities changes against another on the same slices, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ich_ray.assess.interval_estimates import CONFIDENCE, Cases, as_estimate, enough_patients
from ich_ray.statistics.bootstrap import PatientDraws, interval
from ich_ray.statistics.metrics import Ranking, losses

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["FIGURES", "Change", "format_change", "format_changes", "paired_changes"]

FIGURES = ("log_loss", "average_precision", "roc_auc")


class Change(NamedTuple):
    """A figure before and after.

    `difference` is after less before, from `low` to `high` with 95 %: patients are drawn again, the same for both.
    Bounds are None where nothing can be said of them.
    """

    before: float
    after: float
    difference: float
    low: float | None
    high: float | None


def paired_changes(
    labels: NDArray[np.float64], before: NDArray[np.float64], after: NDArray[np.float64], patients: NDArray[Any]
) -> dict[str, Change]:
    """`FIGURES` of probabilities `before` and `after` of the same slices, `[n]` each."""
    draws = PatientDraws(patients)
    first, second = (_figures(labels, probabilities, draws) for probabilities in (before, after))
    difference = second - first  # the figure itself, then that of each resample
    drawable = enough_patients(Cases(labels, before, np.arange(len(labels)), calibrated=True), draws)
    found = {}
    for column, name in enumerate(FIGURES):
        value = float(difference[0, column])
        drawn = difference[1:, column] if drawable else np.empty(0)
        bounds = as_estimate(interval(value, drawn, CONFIDENCE))
        found[name] = Change(float(first[0, column]), float(second[0, column]), value, bounds.low, bounds.high)
    return found


def _figures(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64], draws: PatientDraws
) -> NDArray[np.float64]:
    """`FIGURES` of all slices and then of each resample, `[1 + resamples, 3]`."""
    ranking, loss = Ranking(labels, probabilities), losses(labels, probabilities)
    sums = draws.sums(np.column_stack([loss, np.ones(len(loss))]))
    means = np.append(loss.mean(), sums[:, 0] / sums[:, 1])
    ranks = [ranking.statistics(), *(ranking.statistics(weights) for weights in draws.weights())]
    return np.column_stack([means, np.array(ranks)])


def format_changes(changes: dict[str, Change]) -> str:
    """All figures before and after, on a line."""
    figures = ", ".join(f"{name.replace('_', ' ')} {format_change(one)}" for name, one in changes.items())
    return f"{figures} (in brackets the difference, 95 % over patients)"


def format_change(one: Change) -> str:
    """A figure before and after, and the difference with its interval, or "no interval"."""
    bounds = "no interval" if one.low is None or one.high is None else f"{one.low:+.4f} to {one.high:+.4f}"
    return f"{one.before:.4f} -> {one.after:.4f} ({one.difference:+.4f}, {bounds})"
