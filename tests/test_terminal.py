from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ich_ray import progress, terminal
from ich_ray.terminal import complain, print_json, print_line, print_log, print_table, printable
from tests.hostile_text import HOSTILE, PLANTED, steers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("a\rb", r"a\rb"),
        ("a\nb", r"a\nb"),
        ("a\0b\x7f", r"a\x00b\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("\u202ecod.\u2066x\u2069", r"\u202ecod.\u2066x\u2069"),
        ("\u2028\u2029\u200b\u200d\ufeff", r"\u2028\u2029\u200b\u200d\ufeff"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("a\tb", "a       b"),
        ("é 脳 \u3000 \xa0 🧠 ΔHU", "é 脳 \u3000 \xa0 🧠 ΔHU"),
        ("C:\\x1b", "C:\\x1b"),
        (3.5, "3.5"),
        ("", ""),
    ],
)
def test_what_steers_a_terminal_becomes_an_escape_and_letters_stay(text: object, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_no_text_is_more_than_one_line_or_steers(text: str) -> None:
    assert not steers(printable(text))
    assert "\n" not in printable(text)
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize(
    "show",
    [
        print_line,
        complain,
        lambda text: print_table((text, "x"), [(text, 1)], left=(text,)),
    ],
)
def test_nothing_that_is_printed_steers(show: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    show(f"{HOSTILE}[red]:100:")
    said = "".join(capsys.readouterr())
    assert not steers(said)
    assert PLANTED in said
    assert "[red]:100:" in said


QUOTED = "cannot reach 's3://key:hunter2@bucket/x' nor https://h/x?X-Amz-Signature=hunter2"


@pytest.mark.parametrize("show", [terminal.print_line, terminal.complain, terminal.print_aside])
def test_no_text_repeats_what_opens_an_address(show: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    show(QUOTED)
    assert "cannot reach 's3://bucket/x' nor https://h/x\n" in "".join(capsys.readouterr())


def test_neither_does_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_traceback(OSError(QUOTED))
    assert "OSError: cannot reach 's3://bucket/x' nor https://h/x\n" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "end"), [(4000, "xx\n"), (4001, "x…\n"), (10_000_000, "x…\n")])
def test_a_complaint_has_an_end(length: int, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    complain("x" * length)
    said = capsys.readouterr().err
    assert said.endswith(end)
    assert len(said) == len("ich-ray: ") + min(length, 4000) + len(end) - (2 if length == 4000 else 1)


def test_json_is_ascii_and_exact(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({HOSTILE: [HOSTILE, 0.1, None, "脳"]})
    said = capsys.readouterr().out
    assert said.isascii()
    assert not steers(said)
    assert json.loads(said) == {HOSTILE: [HOSTILE, 0.1, None, "脳"]}


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (["\x1b[31mred\x1b[0m\n", "plain\n"], "red\nplain\n"),
        (["\x1b", "[31", "mred\n"], "red\n"),
        (["a\r", "\nb\r\nc\rd\n"], "a\nb\nc\nd\n"),
        (["\x1b]0;title\x07\x1b[2Jx\n"], "\\x1b]0;title\\x07\\x1b[2Jx\n"),
        (["end\x1b["], "end\\x1b["),
        (["no line break"], "no line break"),
        (["\u202ea\tb\n"], "\\u202ea      b\n"),
        ([], ""),
    ],
)
def test_a_log_keeps_its_lines_and_loses_its_colors(
    pieces: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_log(pieces)
    assert capsys.readouterr().out == said


def test_letters_that_the_terminal_lacks_become_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_line("é 脳")
    stream.flush()
    assert raw.getvalue() == b"\\xe9 \\u8133\n"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What people see on a terminal, colors and cursor left out."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=300, markup=False, emoji=False)
    monkeypatch.setattr(progress, "_console", console)
    return file


def test_lines_and_bars_show_what_steers(shown: io.StringIO) -> None:
    progress.say(f"{HOSTILE}[bold]:100:")
    assert not steers(shown.getvalue())
    assert f"{PLANTED}[bold]:100:" in shown.getvalue()
    with progress.bar(f"Reading [/x] {HOSTILE}", 2, "slices") as advance:
        advance(1, f"1 [/rejected] {HOSTILE}")
    said = shown.getvalue()
    assert f"Reading [/x] {PLANTED}" in said
    assert f"1 [/rejected] {PLANTED}" in said
    assert "\x1b]0;" not in said


def test_libraries_cannot_steer_either(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module, name in (
        (warnings, "showwarning"),
        (logging, "lastResort"),
        (threading, "excepthook"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    terminal.guard_libraries()
    warnings.showwarning(UserWarning(HOSTILE), UserWarning, "file.py", 1)
    assert logging.lastResort
    logging.lastResort.handle(logging.LogRecord("x", logging.WARNING, "x", 1, "%s", (HOSTILE,), None))
    error = ValueError(HOSTILE)
    terminal.print_traceback(error)
    threading.excepthook(threading.ExceptHookArgs((ValueError, error, None, None)))
    said = capsys.readouterr().err
    assert not steers(said)
    assert said.count(PLANTED.partition("\\n")[0]) == 4


def test_the_handlers_of_a_library_are_filtered_once(capsys: pytest.CaptureFixture[str]) -> None:
    logger, stream = logging.Logger("theirs"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("theirs: %(message)s"))
    logger.addHandler(handler)
    logging.Logger.manager.loggerDict["theirs"] = logger
    try:
        for _ in range(2):
            terminal.guard_logger("theirs")
    finally:
        del logging.Logger.manager.loggerDict["theirs"]
    logger.error("%s", HOSTILE.replace("\n", ""))
    logger.error("one\ntwo")
    assert not steers(stream.getvalue())
    assert stream.getvalue().startswith("theirs: ")
    assert stream.getvalue().endswith("theirs: one\ntwo\n")


def test_numbers_stand_to_the_right_and_text_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [("train", 5), ("test", 1234)]
    print_table(("role", "slices"), rows, left=("role",))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "role   slices",
        "train       5",
        "test     1234",
    ]
