"""Plots of the final model on the test patients, each a pure function of labels `[n]` and probabilities `[n]`.

Curves are thinned to what a screen can show; metrics are not computed here: they come with their intervals from
`evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from plotly.subplots import make_subplots

from ich_ray.final.report.bands import perfect_shares
from ich_ray.final.report.style import MODEL, NEGATIVE, POSITIVE, REFERENCE, blank, count, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from ich_ray.final.evaluate import Counts, Estimate, PointFigures
    from ich_ray.final.report.bands import Band

__all__ = [
    "ReliabilityBins",
    "ThresholdCurve",
    "confusion_matrix",
    "histogram",
    "precision_recall",
    "reliability",
    "reliability_bins",
    "roc",
    "threshold_curve",
]

MOST_POINTS = 1500  # of a curve: more than its pixels, and 110,000 test slices would be megabytes
_BINS = 20
_SHADE = "rgba(132,104,211,0.2)"  # of MODEL
_GREY = "rgba(135,141,148,0.25)"  # of REFERENCE


@dataclass(frozen=True)
class ThresholdCurve:
    """Slices at or above each distinct probability, highest first: `[thresholds]` each."""

    thresholds: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    positives: int
    negatives: int

    @property
    def sensitivity(self) -> NDArray[np.float64]:
        return np.asarray(self.true_positives / max(self.positives, 1), np.float64)

    @property
    def false_positive_rate(self) -> NDArray[np.float64]:
        return np.asarray(self.false_positives / max(self.negatives, 1), np.float64)

    @property
    def ppv(self) -> NDArray[np.float64]:
        return np.asarray(self.true_positives / (self.true_positives + self.false_positives), np.float64)


def threshold_curve(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> ThresholdCurve:
    """Counts at every distinct threshold: equal probabilities are decided together."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    last_of_equals = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    flagged = last_of_equals + 1
    true_positives = np.cumsum(labels[order])[last_of_equals]
    positives = int(labels.sum())
    return ThresholdCurve(
        ranked[last_of_equals], true_positives, flagged - true_positives, positives, len(labels) - positives
    )


def _thinned(points: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, points - 1, min(points, MOST_POINTS)).round().astype(np.int64))


def precision_recall(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    point: PointFigures | None,
    band: Band | None = None,
) -> go.Figure:
    """PPV against sensitivity.

    The line steps so that the area under it is average precision: sum of (R_n - R_n-1) P_n.
    """
    curve = threshold_curve(labels, probabilities)
    keep = _thinned(len(curve.thresholds))
    figure = blank("sensitivity (recall)", "PPV (precision)")
    figure.add_scatter(
        x=np.append(0.0, curve.sensitivity[keep]),
        y=np.append(curve.ppv[0], curve.ppv[keep]),
        customdata=np.append(curve.thresholds[0], curve.thresholds[keep]),
        mode="lines",
        line={"color": MODEL, "width": 2, "shape": "vh"},
        name="model",
        hovertemplate="threshold %{customdata:.3f}<br>sensitivity %{x:.3f}<br>PPV %{y:.3f}<extra></extra>",
    )
    prevalence = curve.positives / len(labels)
    _reference(figure, [0, 1], [prevalence, prevalence], f"chance: prevalence {prevalence:.3f}")
    if point is not None:
        _operating_point(figure, point, point.sensitivity, point.ppv, "PPV")
    if band is not None:
        _shade(figure, band, "95 % of resamples")
    return _unit_square(figure)


def roc(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    point: PointFigures | None,
    band: Band | None = None,
) -> go.Figure:
    """Sensitivity against 1 - specificity."""
    curve = threshold_curve(labels, probabilities)
    keep = _thinned(len(curve.thresholds))
    figure = blank("1 − specificity", "sensitivity")
    figure.add_scatter(
        x=np.append(0.0, curve.false_positive_rate[keep]),
        y=np.append(0.0, curve.sensitivity[keep]),
        customdata=np.append(1.0, curve.thresholds[keep]),
        mode="lines",
        line={"color": MODEL, "width": 2},
        name="model",
        hovertemplate="threshold %{customdata:.3f}<br>1 − specificity %{x:.3f}<br>sensitivity %{y:.3f}<extra></extra>",
    )
    _reference(figure, [0, 1], [0, 1], "chance")
    if point is not None and point.specificity.value is not None:
        _operating_point(figure, point, _complement(point.specificity), point.sensitivity, "sensitivity")
    if band is not None:
        _shade(figure, band, "95 % of resamples")
    return _unit_square(figure)


def _complement(interval: Estimate) -> Estimate:
    def flip(value: float | None) -> float | None:
        return None if value is None else 1 - value

    return type(interval)(value=flip(interval.value), low=flip(interval.high), high=flip(interval.low))


def _reference(figure: go.Figure, x: list[float], y: list[float], name: str) -> None:
    figure.add_scatter(
        x=x, y=y, mode="lines", name=name, line={"color": REFERENCE, "width": 1.5, "dash": "dash"}, hoverinfo="skip"
    )


def _shade(figure: go.Figure, band: Band, name: str, color: str = _SHADE) -> None:
    """The area between the two ends of a band."""
    figure.add_scatter(
        x=np.concatenate([band.x, band.x[::-1]]),
        y=np.concatenate([band.high, band.low[::-1]]),
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=color,
        name=name,
        hoverinfo="skip",
    )


def _operating_point(figure: go.Figure, point: PointFigures, x: Estimate, y: Estimate, y_name: str) -> None:
    """A diamond with the intervals of both figures as arms."""
    if x.value is None or y.value is None:
        return
    figure.add_scatter(
        x=[x.value],
        y=[y.value],
        error_x=_arms(x),
        error_y=_arms(y),
        mode="markers",
        marker={"color": MODEL, "size": 12, "symbol": "diamond"},
        name=f"operating point {point.threshold:.3f}",
        hovertemplate=f"operating point: flag at {point.threshold:.3f} or more<br>{y_name} %{{y:.3f}}<extra></extra>",
    )


def _arms(interval: Estimate) -> dict[str, object]:
    if interval.value is None or interval.low is None or interval.high is None:
        return {}
    return {
        "type": "data",
        "array": [max(interval.high - interval.value, 0.0)],
        "arrayminus": [max(interval.value - interval.low, 0.0)],
        "thickness": 1.2,
        "width": 4,
        "color": MODEL,
    }


def _unit_square(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f")
    figure.update_yaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f")
    return figure


@dataclass(frozen=True)
class ReliabilityBins:
    """Bins of equal width that hold a slice: `[bins]` each; `low` and `high` bound the observed share."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.int64]
    centers: NDArray[np.float64]


def reliability_bins(labels: NDArray[np.int64], probabilities: NDArray[np.float64], bins: int = 10) -> ReliabilityBins:
    """Mean probability and observed share of positives by probability, with Wilson's 95 % interval (1927).

    The interval takes slices as independent, so it is too narrow where patients give several; it is a guide to the eye.
    """
    where = np.clip((probabilities * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    held = counts > 0
    n = counts[held].astype(np.float64)
    predicted = np.bincount(where, weights=probabilities, minlength=bins)[held] / n
    observed = np.bincount(where, weights=labels, minlength=bins)[held] / n
    z = 1.96
    middle = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(observed * (1 - observed) / n + z**2 / (4 * n**2))
    return ReliabilityBins(
        predicted,
        observed,
        np.minimum(middle - half, observed),
        np.maximum(middle + half, observed),
        counts[held],
        (np.flatnonzero(held) + 0.5) / bins,
    )


def reliability(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> go.Figure:
    """Observed share against probability above, the number of slices in each bin below."""
    bins = reliability_bins(labels, probabilities)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.05)
    figure.layout = blank("", "observed share of haemorrhage").layout.update(figure.layout, overwrite=False)
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="perfectly calibrated",
        line={"color": REFERENCE, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=bins.predicted,
        y=bins.observed,
        error_y={
            "type": "data",
            "array": bins.high - bins.observed,
            "arrayminus": bins.observed - bins.low,
            "thickness": 1.2,
            "width": 3,
        },
        customdata=bins.counts,
        mode="lines+markers",
        marker={"color": MODEL, "size": 8},
        line={"color": MODEL, "width": 1.5},
        name="model",
        hovertemplate="probability %{x:.3f}<br>observed %{y:.3f}<br>%{customdata:,} slices<extra></extra>",
    )
    _shade(figure, perfect_shares(bins.predicted, bins.counts), "a perfect model, 95 %", _GREY)
    figure.add_bar(
        x=bins.centers,
        y=bins.counts,
        width=0.09,
        marker={"color": NEGATIVE},
        name="slices",
        showlegend=False,
        hovertemplate="%{y:,} slices<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_xaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f", automargin=True, zeroline=False)
    figure.update_yaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f", row=1, col=1)
    figure.update_yaxes(title={"text": "slices"}, nticks=3, automargin=True, row=2, col=1)
    figure.update_xaxes(title={"text": "calibrated probability"}, row=2, col=1)
    return figure


def histogram(labels: NDArray[np.int64], probabilities: NDArray[np.float64], threshold: float | None) -> go.Figure:
    """How each truth spreads over the probabilities, as a share of its own slices, with the threshold as a line."""
    figure = blank("calibrated probability", "share of its slices")
    edges = np.linspace(0, 1, _BINS + 1)
    for truth, name, color in ((0, "no haemorrhage", NEGATIVE), (1, "haemorrhage", POSITIVE)):
        chosen = probabilities[labels == truth]
        slices = np.histogram(chosen, edges)[0]
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=slices / max(len(chosen), 1),
            width=1 / _BINS,
            customdata=slices,
            marker={"color": color, "opacity": 0.62, "line": {"width": 0}},
            name=f"{name} ({count(len(chosen))})",
            hovertemplate=f"{name}<br>%{{customdata:,}} slices, %{{y:.1%}}<extra></extra>",
        )
    if threshold is not None:
        figure.add_vline(x=threshold, line={"color": MODEL, "width": 2})
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line={"color": MODEL, "width": 2}, name=f"threshold {threshold:.3f}"
        )
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_xaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def confusion_matrix(confusion: Counts) -> go.Figure:
    """Slices by truth (rows) and decision (columns), shaded by the share of the row."""
    rows = np.array([[confusion.tn, confusion.fp], [confusion.fn, confusion.tp]])
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    names = [["right, negative", "false alarm"], ["miss", "right, positive"]]
    figure = blank("decision", "truth")
    figure.add_heatmap(
        z=shares,
        x=["not flagged", "flagged"],
        y=["no haemorrhage", "haemorrhage"],
        text=[
            [f"<b>{count(int(rows[i, j]))}</b><br>{names[i][j]}<br>{percent(float(shares[i, j]))}" for j in range(2)]
            for i in range(2)
        ],
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}<br>%{text} of the row<extra></extra>",
        colorscale=[[0, "rgba(125,98,204,0.04)"], [1, "rgba(125,98,204,0.5)"]],
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=3,
        ygap=3,
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed", tickangle=-90)
    return figure
