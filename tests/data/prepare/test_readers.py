"""Several readers of a label: majorities, ties, and figures of agreement that textbooks have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from ich_ray.data.prepare.label_table import read_labels
from ich_ray.data.prepare.readers import majority, reader_agreement, withhold_disputed


def votes(*rows: str) -> NDArray[np.int8]:
    """`1`, `0` and `.` for nothing, a row of readers each."""
    return np.array([[-1 if one == "." else int(one) for one in row] for row in rows], np.int8)


def test_a_majority_needs_more_votes_and_a_tie_is_unknown() -> None:
    table = votes("110", "100", "1..", "10.", "...", "111")
    assert majority(table).tolist() == [1, 0, 1, -1, -1, 1]
    assert majority(votes("1100", "1110", "0000")).tolist() == [-1, 1, 0]
    assert reader_agreement("any", table).ties == 1


def test_kappa_is_that_of_fleiss() -> None:
    """By hand: rows 3-0, 2-1, 0-3, 1-2 agree in 1, 1/3, 1, 1/3 of their pairs; half of the answers are ones."""
    found = reader_agreement("any", votes("111", "110", "000", "001"))
    assert found.pairs_agree == pytest.approx(2 / 3)
    assert found.kappa == pytest.approx((2 / 3 - 0.5) / 0.5)
    assert str(found) == "any: 3 readers of 4 rows: pairs agree 0.667, Fleiss' kappa 0.333; 0 ties are unknown"


def test_kappa_of_two_readers_of_equal_habits_is_that_of_cohen() -> None:
    """Scott's pi and Cohen's kappa differ only where readers say yes unequally often."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 200)
    second = np.roll(first, 1)
    both = np.stack([first, second], axis=1).astype(np.int8)
    expected = cohen_kappa_score(first, second)
    assert reader_agreement("any", both).kappa == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "pairs_agree", "kappa", "counted"),
    [
        (("11", "00"), 1.0, 1.0, 2),
        (("10", "01"), 0.0, -1.0, 2),
        (("00", "00"), 1.0, None, 2),  # chance would agree as well
        (("1.", ".0"), None, None, 0),
        (("110", "11."), 0.5, pytest.approx(-0.5), 2),  # a pair of three, and one of one; kappa is of the first row
    ],
)
def test_agreement_that_cannot_be_told_is_none(
    rows: tuple[str, ...], pairs_agree: float | None, kappa: float | None, counted: int
) -> None:
    found = reader_agreement("any", votes(*rows))
    assert (found.pairs_agree, found.kappa, found.rows) == (pairs_agree, kappa, counted)


def test_blood_of_a_disputed_kind_has_an_unknown_kind() -> None:
    seen = {"any": votes("110", "110", "000"), "subdural": votes("100", "110", "000"), "epidural": votes("010", "000",
            "001")}  # fmt: skip
    answers = {name: majority(table) for name, table in seen.items()}
    assert withhold_disputed(answers, seen) == {"epidural": 1, "subdural": 1}
    assert {name: found.tolist() for name, found in answers.items()} == {
        "any": [1, 1, 0], "subdural": [-1, 1, 0], "epidural": [-1, 0, 0],
    }  # fmt: skip


def test_readers_of_a_table_are_counted_and_disputed_rows_are_kept(tmp_path: Path) -> None:
    """In the layout of CQ500's reads.csv."""
    header = "name,R1:ICH,R2:ICH,R3:ICH,R1:SDH,R2:SDH,R3:SDH"
    rows = ["a,1,1,0,1,0,0", "b,1,1,1,1,1,0", "c,0,0,0,0,0,0", "d,1,0,,0,0,0"]
    (tmp_path / "reads.csv").write_text("\n".join([header, *rows]))
    table = read_labels(
        tmp_path / "reads.csv",
        {"id": "name", "any": ["R1:ICH", "R2:ICH", "R3:ICH"], "subdural": "R1:SDH,R2:SDH,R3:SDH"},
    )
    assert table.values[:, 4:].tolist() == [[-1, 1], [1, 1], [0, 0], [0, -1]]
    assert table.reasons.tolist() == ["", "", "", "label_incomplete"]
    assert [(one.label, one.ties, one.disputed) for one in table.agreement] == [("subdural", 0, 1), ("any", 1, 0)]
