"""Where the test of each of the 53 cases of bad input stands, by the number that it has in their contract."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ich_ray.errors import SpaceError
from ich_ray.search.space.yaml_file import load_space

HERE = Path(__file__).parent
FILES = "data/test_bad_inputs.py::test_a_file_is_the_row_that_its_case_says"
NAMES = "data/test_bad_inputs.py::test_a_name_is_the_row_that_its_case_says"
LABELS = "data/test_bad_inputs.py::test_a_label_table_is_what_its_case_says"

CASES: dict[int, tuple[str, ...]] = {
    **dict.fromkeys(range(1, 42), (FILES,)),
    2: (FILES, "data/test_bad_inputs.py::test_02_files_without_preamble_are_read_and_recorded_when_asked"),
    25: (
        FILES,
        "data/test_bad_inputs.py::test_25_a_decoder_for_every_syntax_is_shipped",
        "data/test_bad_inputs.py::test_25_a_missing_decoder_is_said_once_and_before_the_run",
    ),
    34: (FILES, "data/prepare/test_run.py::test_equal_pixels_under_two_patients"),
    38: (NAMES, "data/test_bad_inputs.py::test_38_a_device_is_not_read"),
    39: (NAMES, "data/test_bad_inputs.py::test_39_a_file_that_vanishes_changes_or_is_refused"),
    41: (FILES, NAMES),
    **dict.fromkeys(range(42, 46), (LABELS,)),
    46: ("data/test_bad_inputs.py::test_46_roles_that_cannot_be",),
    47: (
        "search/space/test_yaml_file.py::test_a_parameter_that_cannot_be_drawn_is_refused",
        "search/space/test_yaml_file.py::test_a_file_that_is_not_a_space_is_refused",
    ),
    48: (
        "search/space/test_yaml_file.py::test_a_parameter_that_cannot_be_drawn_is_refused",
        "search/space/test_yaml_file.py::test_a_file_that_is_not_a_space_is_refused",
    ),
    49: (
        "search/test_preflight.py::test_what_can_never_run_is_refused",
        "search/test_run.py::test_what_cannot_run_is_refused_before_anything_is_written",
    ),
    50: (
        "search/test_cluster_search.py::test_a_machine_that_sees_other_data_is_named",
        "search/test_cluster_search.py::test_a_machine_that_sees_no_images_is_named",
    ),
    51: ("search/test_run.py::test_a_finished_search_stays_as_it_is",),
    52: (
        "data/test_faults.py::test_a_full_disk",
        "data/test_faults.py::test_a_disk_that_fills_up_after_the_blocks",
        "search/test_run.py::test_a_full_disk_stops_it_with_the_cause_at_each_write",
        "test_storage.py::test_a_write_that_fails_leaves_the_old_file_and_nothing_else",
    ),
    53: (
        "cluster/test_secrets.py::test_a_planted_secret_is_found_with_its_line_and_not_repeated",
        "cluster/test_checks.py::test_a_cluster_file_with_a_secret_fails_the_verb",
        "test_bad_input_cases.py::test_53_a_secret_in_a_space_is_named_without_its_value",
    ),
}


def test_every_case_has_a_test() -> None:
    assert sorted(CASES) == list(range(1, 54))
    named = {test for tests in CASES.values() for test in tests}
    there = set()
    for file in {test.split("::")[0] for test in named}:
        tree = ast.parse((HERE / file).read_text())
        there |= {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert named <= there


@pytest.mark.parametrize("line", ["aws_secret_access_key: HUSH", "  api_token: HUSH", "  password: {fixed: HUSH}"])
def test_53_a_secret_in_a_space_is_named_without_its_value(tmp_path: Path, line: str) -> None:
    space = tmp_path / "space.yaml"
    budget = "{images: 400, report_every: 100, first_rung: 100}"
    space.write_text(f"name: a\nbudget: {budget}\nparameters:\n  batch_size: {{choice: [32]}}\n{line}\n")
    with pytest.raises(SpaceError, match=line.split(":", maxsplit=1)[0].strip()) as caught:
        load_space(space)
    assert "HUSH" not in str(caught.value)
