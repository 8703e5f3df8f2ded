from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import parse
from tests.docs.reader import BlockFailed, Reader, first_missing


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    (tmp_path / "folder").mkdir()
    with Reader(tmp_path / "folder", tmp_path / "home") as reader:
        yield reader


def page(*fences: str) -> str:
    return "A page.\n\n" + "\n\n".join(f"```{fence}\n```" for fence in fences) + "\n"


def test_blocks_go_on_where_the_one_before_stood(reader: Reader, tmp_path: Path) -> None:
    text = page(
        'csv title="in/table.csv"\nid,any\na,1',
        "bash\ncd in\nN=7\nset -- some words\nwc -l < table.csv > lines.txt",
        "text\nfalse",
        "python\nfrom pathlib import Path\nlines = int(Path('in/lines.txt').read_text())",
        'python\nprint(lines)\nPath("of_python.txt").write_text(f"{lines}")',
        'bash\necho "$N $PWD" > of_bash.txt\ncp "$HOME/../folder/of_python.txt" copy.txt',
    )
    reader.follow(parse("page.md", text))
    folder = tmp_path / "folder"
    assert (folder / "in/of_bash.txt").read_text() == f"7 {folder}/in\n"
    assert (folder / "in/copy.txt").read_text() == "2"


def test_exit_codes_are_those_that_the_page_says(reader: Reader) -> None:
    text = page("bash\n(exit 3)  # exit code 3\ncat \\\n  nothing  # exit code 1\ntrue | false # exit code 1\ntrue")
    reader.follow(parse("page.md", text))


@pytest.mark.parametrize(
    ("fence", "says"),
    [
        (
            "bash\ntrue\nfalse\necho reached",
            r"page\.md:4: a block of bash ended with 1\n[\s\S]*line 5: exit code 1: false",
        ),
        ("bash\nfalse | true", r"line 4: exit code 1"),
        ("bash\n(exit 3)  # exit code 4", r"line 4: exit code 3, and not 4"),
        ("bash\ntrue  # exit code 4", r"line 4: exit code 0, and not 4"),
        ("bash\necho said; no-such-program", r"It printed:\nsaid\n[\s\S]*page\.md: line 4: no-such-program"),
        (
            "python\n\nraise ValueError('odd')",
            r'page\.md:4: a block of python ended with 1[\s\S]*page\.md", line 5[\s\S]*odd',
        ),
        ("bash\nexit 0\nfalse", r"bash left before its end"),
        ("bash\nexec true\nfalse", r"bash left before its end"),
        ("bash\nkill $$", r"bash ended with -15"),
        ("python\nraise SystemExit(2)", r"python ended with 1"),
        (
            'bash\necho one 1\n```\n\n```text title="output"\none 2\ntwo',
            r"page\.md:8: 'two' is not printed .* but:\none 1\n",
        ),
        ("python\nimport os; os._exit(7)", r"python ended with 1"),
    ],
)
def test_a_failure_names_page_and_line_and_what_was_said(fence: str, says: str, reader: Reader) -> None:
    with pytest.raises(BlockFailed, match=says) as failed:
        reader.follow(parse("page.md", page(fence)))
    assert "\nreached" not in str(failed.value).partition("It printed:")[2]


@pytest.mark.parametrize("block", ["bash\nsleep 600", "python\nimport time; time.sleep(600)"])
def test_a_block_that_takes_too_long_is_ended_and_named(
    block: str, monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    monkeypatch.setattr("tests.docs.reader.LIMIT_S", 0.1)
    monkeypatch.setattr("tests.docs.reader._FAREWELL_S", 0.1)
    with pytest.raises(BlockFailed, match=r"page\.md:4: a block of (bash|python) was not done after 0\.1 s"):
        reader.follow(parse("page.md", page(block)))


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("best 0.7917 (trial 3)\nimages  /home/you...", None),
        ("...\nimages ...\nend 2\n...", None),
        ("images ...\nbest 0.7917 (trial 3)", "best 0.7917 (trial 3)"),
        ("best 0.7917", "best 0.7917"),
        ("best 0.7917 (trial three)", "best 0.7917 (trial three)"),
        ("best ... (trial 3)\n... /home/you/clone", None),
        ("best ... (trial 3) of", "best ... (trial 3) of"),
        ("images ... /clone", None),
        ("images ... /clones", "images ... /clones"),
    ],
)
def test_numbers_of_an_output_may_differ_and_words_may_not(shown: str, missing: str | None) -> None:
    assert first_missing(shown, "best 0.1 (trial 12)\nimages /home/you/clone\nend 1,000\n") == missing


def test_what_a_page_leaves_running_ends_with_it(tmp_path: Path) -> None:
    with Reader(tmp_path, tmp_path / "home") as reader:
        reader.follow(parse("page.md", page("bash\nsleep 600 &\necho $! > pid")))
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    for _ in range(600):  # the kernel ends it when it gets to it
        if not is_running(pid):
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_the_number_of_what_has_ended_is_given_to_nobody_before_the_reader_leaves(tmp_path: Path) -> None:
    """Else whoever had it by then would be ended."""
    with Reader(tmp_path, tmp_path / "home") as reader:
        reader.follow(parse("page.md", page("bash\necho $$ > pid", "bash\ntrue")))
        status = Path(f"/proc/{int((tmp_path / 'pid').read_text())}/status")
        assert "zombie" in status.read_text()
    assert not status.exists()


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_reader_has_nothing_of_whoever_runs_the_tests(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    monkeypatch.setenv("ICH_RAY_NOTIFY", "https://example.org/hook")
    reader.follow(parse("page.md", page("bash\nenv > env.txt\ncommand -v ich-ray > which.txt")))
    said = (tmp_path / "folder/env.txt").read_text()
    assert "elsewhere" not in said
    assert "example.org" not in said
    assert f"\nHOME={tmp_path}/home\n" in said
