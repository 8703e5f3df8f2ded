"""Parallel coordinates: how parameters together went with the objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.html_report.style import REFERENCE, STATE_COLORS, STATE_DASHES, blank, number, plain, setting
from ich_ray.html_report.trials import Scale, about, aside, by_state, choices, faintness, scale, varied

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from ich_ray.trial_records import Objective, TrialResult

__all__ = ["Axis", "axis", "parallel_coordinates"]

_UNUSED_BELOW = 0.14  # the foot of an axis whose parameter some trials do not use
_MOST_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """One upright axis from 0 to 1: its ticks (place, text) and where each trial crosses it, by number."""

    title: str
    ticks: list[tuple[float, str]]
    places: dict[int, float]


def axis(name: str, trials: Sequence[TrialResult], kind: Scale, order: Sequence[Any]) -> Axis:
    """The axis of a parameter; trials that do not use it cross at the foot."""
    values = {trial.number: trial.parameters.get(name) for trial in trials}
    foot = _UNUSED_BELOW if None in values.values() else 0.0
    if kind == "choice":
        step = (1 - foot) / max(len(order) - 1, 1)
        at = {value: foot + step * index for index, value in enumerate(order)}
        # A little apart: lines through one value would hide each other.
        places = {n: at[value] + 0.06 * aside(n) for n, value in values.items() if value is not None}
        ticks = [(place, plain(setting(value))) for value, place in at.items()]
    else:
        used = {n: _run(float(value), kind) for n, value in values.items() if value is not None}
        low, high = min(used.values()), max(used.values())
        places = {n: foot + (1 - foot) * (value - low) / ((high - low) or 1) for n, value in used.items()}
        ticks = _ticks(sorted({value for value in values.values() if value is not None}), low, high, foot, kind)
    unused = {n: 0.0 for n, value in values.items() if value is None}
    return Axis(plain(name), ([(0.0, "not used")] if unused else []) + ticks, {**places, **unused})


def _run(value: float, kind: Scale) -> float:
    return math.log(value) if kind == "log" else value


def _ticks(used: list[Any], low: float, high: float, foot: float, kind: Scale) -> list[tuple[float, str]]:
    """The values themselves where they are few whole numbers, else five from low to high."""
    if all(isinstance(value, int) for value in used) and len(used) <= _MOST_TICKS:
        parts = {(_run(value, kind) - low) / ((high - low) or 1): setting(value) for value in used}
    else:
        shares = [index / 4 for index in range(5)]
        back = [low + (high - low) * share for share in shares]
        parts = {
            share: setting(math.exp(value) if kind == "log" else value)
            for share, value in zip(shares, back, strict=True)
        }
    return [(foot + (1 - foot) * part, text) for part, text in parts.items()]


def _objective_axis(trials: Sequence[TrialResult], objective: Objective) -> Axis:
    values = {trial.number: trial.value or 0.0 for trial in trials}
    low, high = min(values.values()), max(values.values())
    width = (high - low) or 1.0
    ticks = [(index / 4, number(low + width * index / 4)) for index in range(5)]
    return Axis(f"<b>{plain(objective.metric)}</b>", ticks, {n: (value - low) / width for n, value in values.items()})


def parallel_coordinates(
    trials: Sequence[TrialResult], space: dict[str, Any], objective: Objective, best: int | None
) -> go.Figure:
    """One line per trial with a value, across its parameters to the objective; the best one is thick.

    Ordinary lines instead of plotly's own kind, which needs WebGL and `eval`: these print, and run under a policy that
    allows neither.
    """
    shown = [trial for trial in trials if trial.value is not None]
    axes = [axis(name, shown, scale(space, name), choices(space, name, shown)) for name in varied(shown)]
    axes.append(_objective_axis(shown, objective))
    figure = blank("", "")
    for state, group in by_state(shown):
        for position, trial in enumerate(sorted(group, key=lambda trial: trial.number == best)):
            figure.add_scatter(
                x=list(range(len(axes))),
                y=[each.places[trial.number] for each in axes],
                mode="lines",
                line={
                    "color": STATE_COLORS[state],
                    "dash": STATE_DASHES[state],
                    "width": 3.5 if trial.number == best else 1.3,
                },
                opacity=1.0 if trial.number == best else faintness(len(shown)),
                name=state,
                legendgroup=state,
                showlegend=position == 0,
                hovertemplate=f"{plain(objective.metric)} {number(trial.value)}<br>{about(trial)}<extra></extra>",
            )
    _draw_axes(figure, axes)
    return figure


def _draw_axes(figure: go.Figure, axes: Sequence[Axis]) -> None:
    for place, each in enumerate(axes):
        figure.add_vline(x=place, line={"color": REFERENCE, "width": 1})
        for y, text in each.ticks:
            figure.add_annotation(x=place, y=y, text=text, showarrow=False, xanchor="left", xshift=5)
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[each.title for each in axes],
        ticklabeloverflow="allow",
        side="top",
        showgrid=False,
        range=[-0.05, len(axes) - 0.5],
        fixedrange=True,
    )
    figure.update_yaxes(visible=False, range=[-0.06, 1.06], fixedrange=True)
    figure.update_layout(
        legend={"y": -0.02, "yanchor": "top"}, margin={"l": 40, "r": 12, "t": 8, "b": 8}, hovermode="closest"
    )
