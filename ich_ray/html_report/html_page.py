"""One self-contained HTML file: a template, what it shows, and its figures.

Everything is inside the file (plotly.js, pictures, styles) and its content security policy allows nothing else: no
network, no script but the two whose hashes it names. Jinja escapes all text; figures travel as JSON in which `<` is
written as an escape. Knows nothing of what is shown.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ich_ray.html_report.style import count, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

__all__ = ["Plot", "Section", "SourceText", "Table", "document", "sheet"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; the first cell names a row.

    `numbers` are the columns set to the right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Plot:
    """A figure under a title."""

    title: str
    caption: str
    figure: go.Figure


@dataclass(frozen=True)
class SourceText:
    """A file as it was written, folded under a title."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a sheet: paragraphs, then tables, plots and sources."""

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = field(default_factory=tuple)
    sources: Sequence[SourceText] = ()


def document(template: str, figures: Mapping[str, go.Figure], content: Mapping[str, Any]) -> str:
    """The page of a template of this folder as text; figures are drawn where the template names them."""
    drawn = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    script, library = (_HERE / "page.js").read_text(encoding="utf-8"), get_plotlyjs()
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": number, "thousands": count}
    return environment.get_template(template).render(
        **content,
        drawn=set(drawn),
        figures=Markup(json.dumps(drawn, allow_nan=False).replace("<", "\\u003c")),  # noqa: S704
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        library=Markup(library),  # noqa: S704
        script=Markup(script),  # noqa: S704
        allowed=f"{_hash(library)} {_hash(script)}",
    )


def _hash(script: str) -> str:
    """A script's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def sheet(
    title: str, eyebrow: str, lead: Sequence[str], sections: Sequence[Section], warnings: Sequence[str] = ()
) -> str:
    """A page of tables and plots that needs no template of its own."""
    figures = {
        f"{section.name}-{index}": plot.figure for section in sections for index, plot in enumerate(section.plots)
    }
    content = {"title": title, "eyebrow": eyebrow, "lead": lead, "sections": sections, "warnings": warnings}
    return document("sheet.html.j2", figures, content)
