"""How the report writes numbers and colors things. Knows nothing of searches.

Colors are mid-toned, so that each reads on white and on near-black (contrast at least 3 on both), come from the
neighborhood of Okabe and Ito's color-blind-safe palette (jfly.uni-koeln.de/color, 2008), and mean one thing
everywhere; symbols and dashes say the same without color. Everything else about a figure's looks (text, grid,
background) is set by the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import html
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ich_ray.statistics.metrics import METRICS

if TYPE_CHECKING:
    from ich_ray.trial_records import TrialState

__all__ = [
    "MODEL",
    "NEGATIVE",
    "POSITIVE",
    "REFERENCE",
    "SEARCH_COLORS",
    "SPENT_COLORS",
    "STATE_COLORS",
    "STATE_DASHES",
    "STATE_SYMBOLS",
    "blank",
    "count",
    "duration",
    "metric_name",
    "metric_title",
    "metric_words",
    "moment",
    "number",
    "percent",
    "plain",
    "setting",
    "unit_of_time",
]

STATE_COLORS: dict[TrialState, str] = {
    "completed": "#2a7fbf",
    "pruned": "#ad7a10",
    "failed": "#c4477a",
    "running": "#2f9676",
}
STATE_SYMBOLS: dict[TrialState, str] = {
    "completed": "circle",
    "pruned": "x-thin-open",
    "failed": "triangle-down",
    "running": "circle-open",
}
STATE_DASHES: dict[TrialState, str] = {"completed": "solid", "pruned": "dot", "failed": "dash", "running": "dashdot"}
MODEL = "#8468d3"
POSITIVE = "#cf5f34"
NEGATIVE = "#74838f"
REFERENCE = "#878d94"
# Searches side by side, in their order.
SEARCH_COLORS = ("#2a7fbf", "#cf5f34", "#2f9676", "#8468d3", "#ad7a10", "#c4477a", "#5f8f2a", "#74838f")
# Where the time of a trial went.
SPENT_COLORS = {"training": "#5f8f2a", "data": "#b5654a", "validation": "#4c86a8", "saving": "#9a6aa0"}


def blank(x: str, y: str) -> go.Figure:
    """An empty figure with two titled axes and no opinion on theme or size."""
    axis = {"automargin": True, "zeroline": False}
    return go.Figure(
        layout=go.Layout(
            template=go.layout.Template(),
            xaxis={**axis, "title": {"text": plain(x)} if x else None},
            yaxis={**axis, "title": {"text": plain(y)} if y else None},
            margin={"l": 8, "r": 12, "t": 34, "b": 8},
            legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
            hoverlabel={"align": "left"},
        )
    )


def plain(text: object) -> str:
    """Text for a plot: plotly reads a small HTML, so what came from data is escaped."""
    return html.escape(str(text), quote=False)


def metric_name(name: str) -> str:
    """`average_precision` -> `average precision (AP)`, inside a sentence.

    An unknown name keeps its words.
    """
    return METRICS[name].title if name in METRICS else name.replace("_", " ")


def metric_title(name: str) -> str:
    """`average_precision` -> `Average precision (AP)`."""
    words = metric_name(name)
    return words[:1].upper() + words[1:]


def metric_words(name: str) -> str:
    """What a metric is, in plain words; empty for an unknown one."""
    return METRICS[name].words if name in METRICS else ""


def number(value: float | None, digits: int = 3) -> str:
    """Format a figure: `digits` decimals, or significant digits where tiny or huge.

    `–` for none.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 10_000:
        text = f"{value:,.0f}"
    elif value == 0 or abs(value) >= 10 ** (1 - digits):
        text = f"{value:.{digits}f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def setting(value: object) -> str:
    """The value of a parameter, floats in three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def count(value: int) -> str:
    return f"{value:,}"


def percent(value: float | None) -> str:
    """A share as a percentage; the space before the sign does not break."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def duration(seconds: float | None) -> str:
    """`42 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def unit_of_time(whole_s: float) -> tuple[float, str]:
    """Seconds in the unit of an axis that is so long, and its name."""
    if whole_s > 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if whole_s > 120 else (1.0, "seconds")


def moment(time: float) -> str:
    """Seconds since 1970 as a date and time, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
