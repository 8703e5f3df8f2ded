"""Plots of a search over images and parameters, each a pure function of its trials.

A trial keeps its color and mark by how it ended. What came from data (names, values, reasons) is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from ich_ray.html_report.style import (
    MODEL,
    REFERENCE,
    STATE_COLORS,
    STATE_DASHES,
    STATE_SYMBOLS,
    blank,
    metric_name,
    metric_words,
    plain,
    setting,
)
from ich_ray.search.space.space import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from ich_ray.trial_records import Objective, Report, TrialResult, TrialState

__all__ = [
    "Scale",
    "about",
    "aside",
    "by_state",
    "choices",
    "faintness",
    "learning_curves",
    "parameter_effects",
    "retraining_curve",
    "rungs",
    "scale",
    "varied",
]

Scale = Literal["linear", "log", "choice"]


def rungs(space: dict[str, Any]) -> list[int]:
    """Where ASHA compares; none where the space has no budget of ours."""
    try:
        return Budget.model_validate(space.get("budget", {})).rungs()
    except ValidationError:
        return []


def scale(space: dict[str, Any], name: str) -> Scale:
    """How a parameter's axis runs: by its distribution in the space; a choice of numbers is a choice."""
    kinds = set(_distribution(space, name))
    if any(kind.startswith("log") for kind in kinds):
        return "log"
    return "linear" if kinds & {"uniform", "int", "float"} else "choice"


def _distribution(space: dict[str, Any], name: str) -> dict[str, Any]:
    """How the space draws a parameter; empty where it does not say, or is a space of another version."""
    parameters = space.get("parameters")
    written = parameters.get(name) if isinstance(parameters, dict) else None
    return written if isinstance(written, dict) else {}


def varied(trials: Sequence[TrialResult]) -> list[str]:
    """Parameters that differ between trials, in the order of first use.

    Not being used counts as a value.
    """
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    return [name for name in names if len({repr(trial.parameters.get(name)) for trial in trials}) > 1]


def about(trial: TrialResult) -> str:
    """What a hover says of a trial."""
    ended = f"{trial.state}, {trial.reason}" if trial.reason else trial.state
    lines = [f"<b>trial {trial.number}</b> ({plain(ended)})"]
    lines += [f"{plain(name)}: {plain(setting(value))}" for name, value in trial.parameters.items()]
    return "<br>".join(lines)


def by_state(trials: Sequence[TrialResult]) -> list[tuple[TrialState, list[TrialResult]]]:
    """Trials by how they ended, the finished ones last, so that they are drawn on top."""
    groups = ((state, [trial for trial in trials if trial.state == state]) for state in reversed(STATE_COLORS))
    return [(state, group) for state, group in groups if group]


def aside(number: int) -> float:
    """A place between -0.5 and 0.5 that spreads trials with one value: even, and the same on every page."""
    return number * 0.618034 % 1 - 0.5


def faintness(lines: int) -> float:
    """Opacity at which so many lines still show where they are dense."""
    return min(0.75, 6 / math.sqrt(max(lines, 1)))


def learning_curves(
    trials: Sequence[TrialResult], objective: Objective, at: Sequence[int], best: int | None, chance: float | None
) -> go.Figure:
    """One line per trial: the objective against images seen, with ASHA's rungs at `at`.

    Args:
        trials: in any order; those without a report have an empty line.
        objective: what is drawn.
        at: images at which weak trials are stopped.
        best: number of the winning trial, drawn thicker.
        chance: value of a guess, drawn as a dashed line.
    """
    by = "out-of-fold" if objective.networks > 1 else "validation"
    figure = blank("training images seen", f"{by} {metric_name(objective.metric)}")
    for state, group in by_state(trials):
        # The winner last: on top of its peers, and the legend shows an ordinary line.
        for position, trial in enumerate(sorted(group, key=lambda trial: trial.number == best)):
            values = _values(trial.reports, objective.metric)
            figure.add_scatter(
                x=np.array([report.images_seen for report in trial.reports], np.int64),
                y=values,
                mode="lines" if len(values) > 1 else "markers",
                line={
                    "color": STATE_COLORS[state],
                    "dash": STATE_DASHES[state],
                    "width": 3.5 if trial.number == best else 1.4,
                },
                marker={"color": STATE_COLORS[state], "symbol": STATE_SYMBOLS[state], "size": 7},
                opacity=1.0 if trial.number == best else faintness(len(trials)),
                name=state,
                legendgroup=state,
                showlegend=position == 0,
                hovertemplate=f"%{{y:.4f}} at %{{x:,}} images<br>{about(trial)}<extra></extra>",
            )
    for rung in at:
        figure.add_vline(
            x=rung,
            line={"color": REFERENCE, "width": 1, "dash": "dot"},
            annotation={
                "text": f"rung {_short(rung)}",
                "textangle": -90,
                "yanchor": "top",
                "xanchor": "right",
                "bgcolor": "rgba(0,0,0,0)",
            },
            annotation_position="top left",
        )
    if chance is not None:
        figure.add_hline(
            y=chance,
            line={"color": REFERENCE, "width": 1.5, "dash": "dash"},
            annotation_text=f"chance {chance:.3f}",
            annotation_position="bottom right",
        )
    figure.update_xaxes(rangemode="tozero", tickformat="~s")
    return figure


def _values(reports: Sequence[Report], metric: str) -> NDArray[np.float32]:
    """A metric of each report, NaN where it was not finite; as an array because plotly packs those."""
    return np.array([report.metrics.get(metric) for report in reports], np.float32)


def _short(images: int) -> str:
    """As the axis writes it: 1k, 200k, 1.8M."""
    return f"{images / 1e6:g}M" if images >= 1_000_000 else f"{images / 1e3:g}k" if images >= 1000 else str(images)


def parameter_effects(
    trials: Sequence[TrialResult], space: dict[str, Any], objective: Objective
) -> dict[str, go.Figure]:
    """For each parameter that varied: the best objective of every trial that used it, against its value."""
    valued = [trial for trial in trials if trial.value is not None]
    values = [trial.value for trial in valued if trial.value is not None]
    margin = 0.06 * (max(values) - min(values)) or 0.05 if values else 0.0
    found = {}
    for name in varied(valued):
        used = [trial for trial in valued if name in trial.parameters]
        figure = _effect(used, name, scale(space, name), choices(space, name, used), objective)
        # One scale for all, so that they can be compared.
        found[name] = figure.update_yaxes(range=[min(values) - margin, max(values) + margin])
    return found


def choices(space: dict[str, Any], name: str, trials: Sequence[TrialResult]) -> list[Any]:
    """Values in the order of the space, then others that trials used (points may name any)."""
    written = _distribution(space, name).get("choice")
    listed = [value for value in written if isinstance(value, Hashable)] if isinstance(written, list) else []
    return list(dict.fromkeys([*listed, *(trial.parameters[name] for trial in trials if name in trial.parameters)]))


def _effect(trials: Sequence[TrialResult], name: str, kind: Scale, order: list[Any], objective: Objective) -> go.Figure:
    figure = blank("", "")
    for state, group in by_state(trials):
        values = [trial.parameters[name] for trial in group]
        strip = [order.index(v) + 0.45 * aside(t.number) for t, v in zip(group, values, strict=True)]
        figure.add_scatter(
            x=strip if kind == "choice" else values,
            y=[trial.value for trial in group],
            mode="markers",
            marker={
                "color": STATE_COLORS[state],
                "symbol": STATE_SYMBOLS[state],
                "size": 7,
                "opacity": 0.85,
                "line": {"width": 1.6 if STATE_SYMBOLS[state].endswith("open") else 0, "color": STATE_COLORS[state]},
            },
            name=state,
            showlegend=False,
            text=[about(trial) for trial in group],
            hovertemplate=f"{plain(objective.metric)} %{{y:.4f}}<br>%{{text}}<extra></extra>",
        )
    _value_axis(figure, kind, order)
    return figure.update_layout(margin={"l": 8, "r": 12, "t": 8, "b": 8})


def _value_axis(figure: go.Figure, kind: Scale, order: list[Any]) -> None:
    if kind == "choice":
        figure.update_xaxes(
            tickvals=list(range(len(order))),
            ticktext=[plain(setting(value)) for value in order],
            range=[-0.5, len(order) - 0.5],
            showgrid=False,
        )
    elif kind == "log":
        figure.update_xaxes(type="log", exponentformat="power", dtick=1, tickfont={"size": 10})
    elif all(isinstance(value, int) for value in order):
        figure.update_xaxes(tickformat="d", nticks=max(len(order), 2))


def retraining_curve(reports: Sequence[Report], metric: str, kept: int) -> go.Figure:
    """The chosen trial trained again: the objective against images seen, with the weights that were kept."""
    measured = metric_words(metric) if metric == "train_loss" else f"validation {metric_name(metric)}"
    figure = blank("training images seen", measured)
    figure.add_scatter(
        x=[report.images_seen for report in reports],
        y=_values(reports, metric),
        mode="lines+markers",
        line={"color": MODEL, "width": 2},
        marker={"size": 6},
        name="retraining",
        showlegend=False,
        hovertemplate="%{y:.4f} at %{x:,} images<extra></extra>",
    )
    figure.add_vline(
        x=kept,
        line={"color": REFERENCE, "width": 1, "dash": "dot"},
        annotation_text="weights kept",
        annotation_position="bottom left",
    )
    figure.update_xaxes(rangemode="tozero", tickformat="~s")
    return figure.update_layout(margin={"t": 14})
