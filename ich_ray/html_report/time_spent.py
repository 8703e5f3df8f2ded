"""Where the time of trials went, and what of their devices was used, as far as their reports say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.html_report.style import SPENT_COLORS, blank, duration, percent, plain, unit_of_time
from ich_ray.usage import PARTS, format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult
    from ich_ray.usage import Usage

__all__ = ["spent_bars", "spent_facts"]


def spent_facts(search: SearchResult) -> list[tuple[str, str]]:
    """Over all trials: the time of each part with its share, then devices; empty where nobody measured."""
    usage = search.usage
    parts = usage.parts()
    whole = sum(parts.values())
    shares = [
        (PARTS[name].capitalize(), f"{duration(seconds)} ({percent(seconds / whole)})")
        for name, seconds in parts.items()
        if whole
    ]
    return [*shares, *_devices(usage)]


def _devices(usage: Usage) -> list[tuple[str, str]]:
    facts = []
    if usage.device_use is not None:
        facts.append(("Devices in use while training", percent(usage.device_use)))
    if usage.peak_memory_bytes is not None:
        facts.append(("Memory of a trial, at most", format_bytes(usage.peak_memory_bytes)))
    if usage.bytes_written is not None:
        facts.append(("Written in states, weights and logits", format_bytes(usage.bytes_written)))
    return facts


def spent_bars(trials: Sequence[TrialResult]) -> go.Figure | None:
    """A bar for each trial by its number, of the parts of its time; None where nobody measured."""
    measured = [(trial, trial.usage) for trial in sorted(trials, key=lambda trial: trial.number)]
    known = [(trial, usage, parts) for trial, usage in measured if (parts := usage.parts())]
    if not known:
        return None
    unit, name = unit_of_time(max(sum(parts.values()) for _, _, parts in known))
    figure = blank("trial", f"{name} of all its reports")
    for part, called in PARTS.items():
        if not any(part in parts for *_, parts in known):
            continue
        words = called.capitalize()
        figure.add_bar(
            x=[trial.number for trial, *_ in known],
            y=[parts.get(part, 0.0) / unit for *_, parts in known],
            name=words,
            marker={"color": SPENT_COLORS[part], "line": {"width": 0}},
            customdata=[_about(trial, usage, words, parts.get(part)) for trial, usage, parts in known],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(barmode="stack", bargap=0.15)


def _about(trial: TrialResult, usage: Usage, words: str, seconds: float | None) -> str:
    rate = [] if usage.images_per_s is None else [f"{usage.images_per_s:,.0f} images per second of training"]
    facts = [f"{plain(name)}: {plain(value)}" for name, value in _devices(usage)]
    return "<br>".join([f"<b>trial {trial.number}</b>", f"{words}: {duration(seconds)}", *rate, *facts])
