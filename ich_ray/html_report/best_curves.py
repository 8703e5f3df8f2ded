"""Curves of the best value so far of several searches in one plot, a color and a mark each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.html_report.best_so_far import course, work
from ich_ray.html_report.html_page import Plot
from ich_ray.html_report.style import SEARCH_COLORS, blank, metric_name, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import plotly.graph_objects as go

    from ich_ray.html_report.best_so_far import Step
    from ich_ray.results import SearchResult

__all__ = ["best_curves"]

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")


def best_curves(names: Sequence[str], found: Sequence[SearchResult]) -> list[Plot]:
    """Over images, and GPU hours where trials held some, a plot for each objective: others share no axis.

    Args:
        names: of the searches, as the legend has them.
        found: at most as many as there are `SEARCH_COLORS`.
    """
    plots: list[Plot] = []
    for metric, mode in dict.fromkeys((one.objective.metric, one.objective.mode) for one in found):
        steps = {
            at: work({trial.number: course(trial) for trial in one.trials}, one.objective).steps
            for at, one in enumerate(found)
            if (one.objective.metric, one.objective.mode) == (metric, mode)
        }
        reached = {at: of for at, of in steps.items() if of}
        if reached:
            plots += _plots(names, reached, metric_name(metric))
    return plots


def _plots(names: Sequence[str], steps: Mapping[int, Sequence[Step]], metric: str) -> list[Plot]:
    over: dict[str, Callable[[Step], float]] = {"training images of all trials": lambda step: step.images}
    if any(of[-1].gpu_hours for of in steps.values()):
        over["GPU hours of all trials"] = lambda step: step.gpu_hours
    return [
        Plot(
            f"Best {metric} so far over {x.split(' of ')[0]}",
            "Of trials that did not fail, stopped ones too.",
            _curves(names, steps, x, metric, spent),
        )
        for x, spent in over.items()
    ]


def _curves(
    names: Sequence[str], steps: Mapping[int, Sequence[Step]], x: str, metric: str, spent: Callable[[Step], float]
) -> go.Figure:
    figure = blank(x, f"best {metric} so far")
    for at, of in steps.items():
        figure.add_scatter(
            x=[spent(step) for step in of],
            y=[step.value for step in of],
            mode="lines+markers",
            line={"color": SEARCH_COLORS[at], "dash": _DASHES[at], "width": 2, "shape": "hv"},
            marker={"color": SEARCH_COLORS[at], "symbol": _SYMBOLS[at], "size": 6},
            name=plain(names[at]),
            text=[f"trial {step.trial}" for step in of],
            hovertemplate=f"%{{y:.4f}} at %{{x:,}}, %{{text}}<extra>{plain(names[at])}</extra>",
        )
    return figure.update_xaxes(rangemode="tozero", tickformat="~s" if "images" in x else None)
