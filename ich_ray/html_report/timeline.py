"""When each trial ran, and beside which others. Slots are inferred from times: the ledger keeps none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ich_ray.html_report.style import STATE_COLORS, blank, duration, plain, unit_of_time
from ich_ray.html_report.trials import by_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from ich_ray.trial_records import TrialResult

__all__ = ["slots", "timeline"]


def slots(trials: Sequence[TrialResult]) -> dict[int, str]:
    """The slot of each trial, by number: the first one of its machine that was free when it started.

    Machines are numbered, not named: a page is passed on.
    """
    free_at: dict[str, list[float]] = {}
    found = {}
    for trial in sorted(trials, key=lambda trial: (trial.started, trial.number)):
        machine = trial.machine  # and not its process: a new one may take over a slot
        ends = free_at.setdefault(machine, [])
        slot = next((index for index, end in enumerate(ends) if end <= trial.started), len(ends))
        ends[slot : slot + 1] = [_end(trial)]
        found[trial.number] = (list(free_at).index(machine) + 1, slot + 1)
    several = len(free_at) > 1
    return {n: f"node {node}, slot {slot}" if several else f"slot {slot}" for n, (node, slot) in found.items()}


def _end(trial: TrialResult) -> float:
    """When it ended; for a trial that runs, its last report."""
    last = trial.reports[-1].time if trial.reports else trial.started
    return trial.ended if trial.ended is not None else last


def timeline(trials: Sequence[TrialResult], numbered: bool = True) -> go.Figure:
    """Draw what each slot did: a bar per trial from its start to its end.

    Bars carry their numbers where they are few.
    """
    begun = min((trial.started for trial in trials), default=0.0)
    whole = max((_end(trial) for trial in trials), default=0.0) - begun
    unit, name = unit_of_time(whole)
    places = slots(trials)
    figure = blank(f"{name} since the first trial started", "")
    for state, group in by_state(trials):
        figure.add_bar(
            orientation="h",
            base=[(trial.started - begun) / unit for trial in group],
            x=[(_end(trial) - trial.started) / unit for trial in group],
            y=[places[trial.number] for trial in group],
            marker={"color": STATE_COLORS[state], "opacity": 0.85, "line": {"width": 1, "color": "rgba(0,0,0,0)"}},
            name=state,
            text=[str(trial.number) for trial in group] if numbered else None,
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="both",
            textfont={"color": "#ffffff"},
            customdata=[_about(trial) for trial in group],
            hovertemplate="%{customdata}<extra></extra>",
        )
    order = sorted(set(places.values()), key=lambda slot: [int(part) for part in re.findall(r"\d+", slot)])
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=order,
        autorange="reversed",
        showgrid=False,
        type="category",
    )
    return figure.update_layout(barmode="overlay", bargap=0.25)


def _about(trial: TrialResult) -> str:
    """What a hover says: without the parameters, because all trials are here, not only the best."""
    ended = f"{trial.state}, {trial.reason}" if trial.reason else trial.state
    return f"<b>trial {trial.number}</b> ({plain(ended)})<br>{duration(_end(trial) - trial.started)}"
