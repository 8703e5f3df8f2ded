"""Reliability diagrams: observed shares against probabilities, with what chance allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from plotly.subplots import make_subplots

from ich_ray.html_report.confidence_bands import perfect_shares
from ich_ray.html_report.performance import shade
from ich_ray.html_report.style import MODEL, NEGATIVE, REFERENCE, blank

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

__all__ = ["ReliabilityBins", "reliability", "reliability_bins"]

_GREY = "rgba(135,141,148,0.25)"  # of REFERENCE


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
    """Mean probability and share of positives by bin, with Wilson's 95 % interval (1927).

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


def reliability(labels: NDArray[np.int64], probabilities: NDArray[np.float64], unit: str = "slices") -> go.Figure:
    """Observed share against probability above, the number of slices, or studies, in each bin below."""
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
        hovertemplate=f"probability %{{x:.3f}}<br>observed %{{y:.3f}}<br>%{{customdata:,}} {unit}<extra></extra>",
    )
    shade(figure, perfect_shares(bins.predicted, bins.counts), "a perfect model, 95 %", _GREY)
    figure.add_bar(
        x=bins.centers,
        y=bins.counts,
        width=0.09,
        marker={"color": NEGATIVE},
        name=unit,
        showlegend=False,
        hovertemplate=f"%{{y:,}} {unit}<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_xaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f", automargin=True, zeroline=False)
    figure.update_yaxes(range=[-0.02, 1.02], dtick=0.2, tickformat=".1f", row=1, col=1)
    figure.update_yaxes(title={"text": unit}, nticks=3, automargin=True, row=2, col=1)
    figure.update_xaxes(title={"text": "calibrated probability"}, row=2, col=1)
    return figure
