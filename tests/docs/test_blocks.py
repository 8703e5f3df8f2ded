"""Every block of README.md and docs/ is run by test_pages.py or listed with a reason; every command is one there is."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.docs.blocks import REPOSITORY, RUN, Block, blocks, pages, parse
from tests.docs.commands import commands, problem
from tests.docs.unrun import followed_pages, is_listed, listed, unrun_pages

ALL = [block for page in pages() for block in blocks(page)]
FENCED = [block for block in ALL if block.kind == "fence"]
PAGE = """
Run `ich-ray results first --json` at any time.

```bash
ich-ray search data --space space.yaml \\
  --out first   # a comment
timeout 20 ich-ray watch first > page.html 2>errors.txt | cat  # exit code 124
```

- In a list:

  ```yaml title="spaces/space.yaml"
  name: mine
  ```

End.

    ich-ray audit first
"""


def test_blocks_are_read_with_their_lines() -> None:
    found = [(block.kind, block.line, block.language, block.title) for block in parse("page.md", PAGE)]
    assert found == [
        ("inline", 2, "", ""),
        ("fence", 5, "bash", ""),
        ("fence", 13, "yaml", "spaces/space.yaml"),
        ("indented", 18, "", ""),
    ]


def test_commands_are_read_up_to_pipes_and_redirections() -> None:
    found = [command for block in parse("page.md", PAGE) for command in commands(block)]
    assert found == [
        ["ich-ray", "results", "first", "--json"],
        ["ich-ray", "search", "data", "--space", "space.yaml", "--out", "first"],
        ["ich-ray", "watch", "first"],
        ["ich-ray", "audit", "first"],
    ]


@pytest.mark.parametrize(
    ("command", "inline", "says"),
    [
        ("ich-ray serch data", False, "ich-ray has no verb serch"),
        ("ich-ray search data --space s.yaml", False, "Missing option '--out'."),
        ("ich-ray search data --space s.yaml --out o --hour 1", False, "No such option: --hour"),
        ("ich-ray search --hour 1", True, "no such option --hour"),
        ("ich-ray search --hour 1 ...", False, "no such option --hour"),
        ("ich-ray submit --restarts 9 -- serch ...", False, "ich-ray has no verb serch"),
        ("ich-ray submit -- search data --space s.yaml --out o --trials x", False, "Input should be a valid integer"),
        ("ray up cluster.yaml --hour", False, "No such option '--hour'"),
    ],
)
def test_a_command_that_there_is_not_is_found(command: str, inline: bool, says: str) -> None:
    assert says in str(problem(command.split(), inline=inline))


@pytest.mark.parametrize("page", pages())
def test_every_command_of_a_page_is_one_that_there_is(page: str) -> None:
    found = [(block, command) for block in blocks(page) for command in commands(block)]
    wrong = {
        f"{block.where}: {' '.join(command)}": said
        for block, command in found
        if (said := problem(command, inline=block.kind == "inline"))
    }
    assert wrong == {}


def test_commands_are_found_at_all() -> None:
    verbs = {command[1] for block in ALL for command in commands(block) if command[1:]}
    assert verbs > {"prepare", "search", "results", "retrain", "predict"}


def test_what_is_made_can_be_made() -> None:
    lines = [
        line.split("#")[0].split() for block in FENCED if block.language == "bash" for line in block.text.split("\n")
    ]
    targets = {words[1] for words in lines if words[:1] == ["make"]}
    assert ".venv/installed" in targets
    subprocess.run(["/usr/bin/env", "make", "--dry-run", *sorted(targets)], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("block", [block for block in FENCED if block.language == "python"], ids=lambda b: b.where)
def test_python_of_a_page_compiles(block: Block) -> None:
    compile(block.text, block.where, "exec")


def test_a_block_says_its_language() -> None:
    """Bash and Python are run, text and console are shown."""
    assert [block.where for block in FENCED if not block.language] == []


def test_no_command_stands_where_it_cannot_be_run() -> None:
    """Indented blocks have no language, and what MkDocs makes of indented fences is not CommonMark."""
    hidden = {block.page for block in ALL if block.kind == "indented" and ("```" in block.text or any(commands(block)))}
    assert hidden == set()


def test_what_is_run_goes_by_one_name() -> None:
    """What goes by another, such as sh or Bash, nobody would run."""
    known = {*RUN, "text", "yaml", "toml"}
    assert {block.where: block.language for block in FENCED if block.language not in known} == {}


def test_no_failure_of_a_block_is_hidden_from_bash() -> None:
    hiding = {"&&", "||", "!", "exit", "exec", "set", "trap"}
    run = [block for block in FENCED if block.language == "bash" and not is_listed(block)]
    found = {block.where: hiding & {*re.split(r"[\s;]+", re.sub(r"#.*", "", block.text))} for block in run}
    assert {where: words for where, words in found.items() if words} == {}


def test_a_file_that_a_page_writes_is_used_by_a_block_after_it() -> None:
    later = {block: FENCED[index:] for index, block in enumerate(FENCED) if block.title and not block.is_output}
    unused = [
        block.where
        for block, after in later.items()
        if block.page in followed_pages()
        and not any(one.is_run and one.page == block.page and block.title in one.text for one in after)
    ]
    assert unused == []


def test_every_entry_of_the_list_means_one_block_and_has_a_reason() -> None:
    meant = {(entry.page, entry.starts): sum(map(entry.means, ALL)) for entry in listed()}
    assert meant == dict.fromkeys(meant, 1)
    assert len(meant) == len(listed())
    assert [entry for entry in listed() if len(entry.reason) < 10] == []


def test_a_page_of_which_nothing_is_run_says_why() -> None:
    without = {block.page for block in ALL if is_listed(block)} - set(followed_pages())
    assert without == set(unrun_pages())
    assert [page for page, reason in unrun_pages().items() if len(reason) < 10] == []
