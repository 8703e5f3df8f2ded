"""The verbs of the command line with their flags and help, as Markdown, out of the Typer application."""

from __future__ import annotations

import typer.main
from typer.cli import get_docs_for_click

from ich_ray.cli import app

__all__ = ["application", "verbs"]


def application() -> typer.core.TyperGroup:
    """The command line as Typer runs it."""
    found = typer.main.get_command(app)
    assert isinstance(found, typer.core.TyperGroup)  # noqa: S101  (for mypy)
    return found


def verbs() -> str:
    """A line a verb, then a section each."""
    group = application()
    context = group.make_context("ich-ray", [], resilient_parsing=True)
    lines = [f"- [`{name}`](#ich-ray-{name}): {command.help}" for name, command in group.commands.items()]
    sections = [
        get_docs_for_click(obj=command, ctx=context, indent=1, name=name, call_prefix="ich-ray")
        for name, command in group.commands.items()
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(sections)
