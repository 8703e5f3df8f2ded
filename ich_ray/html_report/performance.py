"""Plots of the final model on the test patients.

Each is a pure function of labels `[n]` and probabilities `[n]`. Curves are thinned to what a screen can show; metrics
are not computed here: they come with their intervals from `evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.html_report.style import MODEL, NEGATIVE, POSITIVE, REFERENCE, blank, count, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from ich_ray.assess.interval_estimates import Counts, Estimate, PointFigures
    from ich_ray.html_report.confidence_bands import Band

__all__ = [
    "ThresholdCurve",
    "confusion_matrix",
    "histogram",
    "precision_recall",
    "roc",
    "shade",
    "threshold_curve",
]

MOST_POINTS = 1500  # of a curve: more than its pixels, and 110,000 test slices would be megabytes
_BINS = 20
_SHADE = "rgba(132,104,211,0.2)"  # of MODEL


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
        shade(figure, band, "95 % of resamples")
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
        shade(figure, band, "95 % of resamples")
    return _unit_square(figure)


def _complement(interval: Estimate) -> Estimate:
    def flip(value: float | None) -> float | None:
        return None if value is None else 1 - value

    return type(interval)(value=flip(interval.value), low=flip(interval.high), high=flip(interval.low))


def _reference(figure: go.Figure, x: list[float], y: list[float], name: str) -> None:
    figure.add_scatter(
        x=x, y=y, mode="lines", name=name, line={"color": REFERENCE, "width": 1.5, "dash": "dash"}, hoverinfo="skip"
    )


def shade(figure: go.Figure, band: Band, name: str, color: str = _SHADE) -> None:
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


def histogram(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], threshold: float | None, unit: str = "slices"
) -> go.Figure:
    """The distribution of probabilities by truth, with the threshold as a line.

    Shares are of the slices, or studies, of each truth.
    """
    figure = blank("calibrated probability", f"share of its {unit}")
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
            hovertemplate=f"{name}<br>%{{customdata:,}} {unit}, %{{y:.1%}}<extra></extra>",
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
