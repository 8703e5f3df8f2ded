"""The reference out of the code says something of every verb, flag, field, code and reason, and of nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
import yaml

import ich_ray
from documentation import commands, formats, reasons, space_keys
from documentation.fields import Fields
from ich_ray.errors import RejectionLimitError
from ich_ray.search.tune.sampler import WORKER_DIED
from ich_ray.search.tune.watchdog import SILENT
from ich_ray.training.machine_faults import FAULTS
from ich_ray.trial_records import NODE_LOST, OUT_OF_MEMORY, PREEMPTED, Report, TrialResult
from tests import hostile
from tests.test_house import PACKAGE, REPOSITORY

PAGES = REPOSITORY / "docs/reference"


@pytest.mark.parametrize("verb", commands.application().commands)
def test_every_verb_and_every_flag_says_what_it_does(verb: str) -> None:
    command = commands.application().commands[verb]
    assert command.help
    assert [one.name for one in command.params if not getattr(one, "help", None)] == []


def test_the_commands_have_a_line_and_a_section_each() -> None:
    made = commands.verbs()
    assert "- [`doctor`](#ich-ray-doctor): What would break a search here, or on a cluster.\n" in made
    assert re.findall(r"^## `ich-ray ([\w-]+)`$", made, re.M) == [*commands.application().commands]
    assert "* `--patients <int range>`: How many patients.  [default: 160; x>=1]\n" in made


@pytest.mark.parametrize("kind", formats.shown(), ids=lambda kind: kind.__name__)
def test_every_field_of_a_file_has_a_meaning(kind: type) -> None:
    fields = Fields(kind)
    assert [name for name in fields.names if not fields.meaning(name)] == []


def test_every_record_is_of_a_file_or_known_to_be_of_none() -> None:
    elsewhere = {"Hyperparameters", "SequenceParameters"}  # of the page of search spaces
    within = {"Figures", "FaultPlace", "_Openings"}  # bases of records that are there, and a part of one
    records = {kind for kind in hostile.kinds() if kind.__name__ not in elsewhere | within}
    records = {kind for kind in records if kind.__module__ not in formats.OF_NO_FILE}
    assert records - {*formats.shown()} == set()


def test_a_row_has_type_range_default_and_meaning() -> None:
    rows = Fields(TrialResult, lambda name: f"[{name}]").table().splitlines()
    assert rows[2] == "| `number` | integer ≥ 0 |  | of the trial, from 0. |"
    assert '| `state` | `"running"`, `"completed"`, `"pruned"`, `"failed"` | `"running"` | `running` until' in rows[5]
    assert "| `reports` | array of [Report] | `[]` | One measurement of a trial on the validation patients. |" in rows
    assert Fields(Report).values("metrics") == "object of number or null by name"
    assert Fields(Report).default("metrics") == ""


def test_the_space_file_has_its_keys_and_those_of_each_mapping() -> None:
    made = space_keys.file()
    assert re.findall(r"^### `(\w+)`$", made, re.M) == ["objective", "budget", "constraints"]
    assert "| `reduction` | integer ≥ 2 | `3` | a trial goes on past a rung" in made


def test_the_groups_of_hyperparameters_hold_all_of_them() -> None:
    made = space_keys.hyperparameters()
    named = re.findall(r"^\| `(\w+)` \|", made, re.M)
    assert len(named) == len({*named})
    assert {*named} == {*space_keys.Hyperparameters.model_fields}
    assert "| `batch_size` | integer ≥ 1 and ≤ 65,536 | `64` | images per optimizer step" in made


def test_every_exit_code_of_an_error_is_there() -> None:
    assert {kind.exit_code for kind in reasons.errors()} | {0, 3} == reasons.CODES.keys()
    explained = (REPOSITORY / "docs/why-a-search-ends.md").read_text()
    assert [code for code in reasons.CODES if f"\n| {code} | " not in explained] == []
    assert RejectionLimitError in reasons.errors()
    assert "| 4 | More inputs were rejected than `--limit-rejected` allows; what was accepted is kept. |" in (
        reasons.exit_codes()
    )


def ends() -> Iterator[str]:
    """Reasons in the source that trials end with, where they stand as constants or begin with one."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Verdict"), args=[_, ast.Constant(value=str(reason)), *_]):
                    yield reason
                case ast.Call(func=ast.Name(id="TrialFailure"), args=[ast.Constant(value=str(reason)), *_]):
                    yield reason
                case ast.JoinedStr(values=[ast.Constant(value="rung_" | "folds_" as reason), _]):
                    yield f"{reason}N"


def test_every_reason_of_a_trial_is_there_and_no_other() -> None:
    constants = {OUT_OF_MEMORY, "stopped_by_request", WORKER_DIED, "device_error"}
    assert {*ends()} | constants == {reason for reasons_ in reasons.ENDS.values() for reason in reasons_}


def test_every_cause_of_a_lost_attempt_is_there_and_no_other() -> None:
    assert reasons.CAUSES.keys() == {PREEMPTED, NODE_LOST, SILENT, OUT_OF_MEMORY, *FAULTS}


def test_the_python_page_has_all_that_the_package_offers() -> None:
    page = (PAGES / "api.md").read_text()
    named = re.findall(r"^::: ich_ray\.(\S+)$", page, re.M)
    assert len(named) == len({*named})
    assert {name for name in named if "." not in name} == {*ich_ray.__all__}


def test_every_part_stands_on_one_page() -> None:
    hooks = (REPOSITORY / "documentation/hooks.py").read_text()
    parts = re.findall(r'^    "([\w ]+)": \w+\.\w+,$', hooks, re.M)
    assert sorted(re.findall(r"<!-- made: (.+) -->", "".join(page.read_text() for page in PAGES.glob("*.md")))) == parts


def test_the_page_of_spaces_shows_one_that_is_read() -> None:
    from ich_ray.search.space.yaml_file import parse_space

    shown = re.search(r'```yaml title="space.yaml"\n(.*?)```', (PAGES / "search-space.md").read_text(), re.S)
    assert shown
    assert parse_space(yaml.safe_load(shown[1]), "space.yaml").name == "small"
