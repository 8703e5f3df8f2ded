"""Commands that blocks hold, and whether the program that they name would take them. Nothing is executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache

import click
import typer.main
from ray.scripts import scripts
from typer.exceptions import TyperException

from documentation.commands import application
from tests.docs.blocks import Block

PROGRAMS = ("ich-ray", "ray")
CUT_SHORT = "..."
_SHELLS = ("bash", "sh", "shell", "console")


def commands(block: Block) -> Iterator[list[str]]:
    """Every command of PROGRAMS in a block, up to a pipe, a redirection or the end of its line.

    In what is not for a shell, such as an output, a line is one only if it begins with the program.
    """
    for line in _logical_lines(block.text):
        words = _words(line)
        starts = [index for index, word in enumerate(words) if word in PROGRAMS]
        if block.language not in _SHELLS:
            starts = starts[:1] if words and words[0] in PROGRAMS and words[1:] else []
        for start in starts:
            yield _until_punctuation(words[start:])


def problem(command: list[str], *, inline: bool = False) -> str | None:
    """Why a program would not take a command; of one in a sentence, or cut short, its verb and flags are looked at."""
    program, *rest = command
    verb, arguments = (rest[0], rest[1:]) if rest else (CUT_SHORT, [])
    if verb == CUT_SHORT or verb.isupper() or verb.startswith("-"):
        return None
    known = _group(program).commands.get(verb)
    if known is None:
        return f"{program} has no verb {verb}"
    if verb == "submit" and "--" in arguments:
        return problem(["ich-ray", *arguments[arguments.index("--") + 1 :]], inline=inline)
    cut_short = inline or CUT_SHORT in arguments or not arguments
    return _unknown_flag(known, arguments) if cut_short else _refusal(known, arguments)


def _refusal(command: click.Command, arguments: list[str]) -> str | None:
    try:
        command.make_context(command.name, list(arguments))
    except (click.exceptions.Exit, typer.Exit):  # --help
        return None
    except (click.ClickException, TyperException) as error:
        return " ".join(error.format_message().split())
    return None


def _unknown_flag(command: click.Command, arguments: list[str]) -> str | None:
    flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
    given = [word.split("=")[0] for word in arguments if word.startswith("--")]
    return next((f"no such option {flag}" for flag in given if flag not in flags), None)


@cache
def _group(program: str) -> click.Group:
    return scripts.cli if program == "ray" else application()  # type: ignore[return-value]


def _logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", text)
    return [re.sub(r"^\s*\$ ", "", line) for line in joined.splitlines()]


def _words(line: str) -> list[str]:
    reader = shlex.shlex(line, posix=True, punctuation_chars="();<>|&`")
    reader.commenters = "#"
    reader.whitespace_split = True
    try:
        return list(reader)
    except ValueError:  # a quotation that goes on in the next line, or an apostrophe of prose
        return line.split()


def _until_punctuation(words: list[str]) -> list[str]:
    command: list[str] = []
    for word in words:
        if not set(word) - set("();<>|&`"):
            if set(word) & {"<", ">"} and command and command[-1] in {"1", "2"}:  # 2>errors.txt
                command.pop()
            break
        command.append(word)
    return command
