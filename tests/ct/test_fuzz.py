"""Changed files of every transfer syntax: what is accepted equals a reading that is not ours, or a rule says why not.

`python -m tests.ct.fuzz` is the long run; docs/reliability.md has its figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_ray.ct.dicom import CTSlice, read_slice
from ich_ray.ct.pixels import COMPRESSED, NATIVE
from ich_ray.errors import Rejection
from tests.ct.fuzz import judging
from tests.ct.fuzz.bases import BASES
from tests.ct.fuzz.judging import judge
from tests.ct.fuzz.run import base_of, changed_file, run


@pytest.mark.parametrize("name", BASES)
def test_a_good_file_is_read_as_by_pydicom_and_by_gdcm(name: str) -> None:
    assert judge(BASES[name](), base_of(name)).kind == "equal to both"


def test_the_good_files_have_every_transfer_syntax_that_is_read() -> None:
    assert {read_slice(make()).header.transfer_syntax for make in BASES.values()} == NATIVE | COMPRESSED


@settings(max_examples=300, derandomize=True)
@given(st.integers(0, 10**9))
def test_no_change_is_read_otherwise_than_by_others_without_a_rule(number: int) -> None:
    _, found = run([number], seed=1)
    assert found == []


@pytest.mark.parametrize("number", [15367, 23312])  # a position of unknown VR, and one with a NUL in it
def test_a_position_that_others_guess_has_its_rule(number: int) -> None:
    _, found = run([number], seed=1)
    assert found == []


# Cosines that are not orthogonal, are too long or slightly so, or zero; a form feed in a position, in an orientation.
@pytest.mark.parametrize("number", [827, 3015, 6388, 9403, 5327, 16700])
def test_a_position_whose_orientation_is_none_is_along_z(number: int) -> None:
    _, found = run([number], seed=0)
    assert found == []


def test_a_failure_of_pydicom_beside_a_rescale_that_gdcm_does_not_take_has_its_rules() -> None:
    kinds, found = run([1349], seed=7)
    assert found == []
    assert list(kinds) == ["GDCM takes no rescale from a SOP class that is not CT's; pydicom fails"]


@pytest.mark.slow
def test_5000_changes() -> None:
    kinds, found = run(range(5000), seed=2)
    assert found == []
    assert sum(kinds.values()) == 5000
    assert kinds["equal to both"] > 500


FAULTS: dict[str, tuple[Callable[[CTSlice], CTSlice], str]] = {
    "another patient": (lambda ct: replace(ct, header=replace(ct.header, patient="P2")), "patient"),
    "another slice": (lambda ct: replace(ct, header=replace(ct.header, slice_id="ID_2")), "slice_id"),
    "no series": (lambda ct: replace(ct, header=replace(ct.header, series="")), "series"),
    "one HU more": (lambda ct: replace(ct, intercept=ct.intercept + 1), "HU"),
    "one pixel": (lambda ct: replace(ct, stored=_with_other_corner(ct)), "HU"),
    "turned": (lambda ct: replace(ct, stored=ct.stored.T), "HU"),
}


def _with_other_corner(ct: CTSlice) -> np.ndarray:
    words = ct.stored.copy()
    words[-1, -1] += 1
    return words


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_with_a_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, fact = FAULTS[fault]
    monkeypatch.setattr(judging, "read_slice", lambda data: spoil(read_slice(data)))
    verdict = judge(BASES["rle, uid"](), base_of("rle, uid"))
    assert set(verdict.unjudged) == {f"pydicom: {fact}", f"GDCM: {fact}"}


SILENCES = {
    "a tag that stands twice": (b"(\0\x10\0US", b"(\0\x10\0US\2\0\x20\0(\0\x10\0US"),
    "PhotometricInterpretation": (b"MONOCHROME2", b"MONOCHROME1"),
    "Modality": (b"CS\2\0CT", b"CS\2\0MR"),
    "a Modality LUT": (b"(\0T\x10LO\2\0HU", b"(\0T\x10LO\2\0HU(\0\0\x30SQ\0\0\0\0\0\0"),
    "RescaleType": (b"HU", b"OD"),
    "HighBit": (b"(\0\2\1US\2\0\x0f\0", b"(\0\2\1US\2\0\x0e\0"),
}


@pytest.mark.parametrize("silence", SILENCES)
def test_a_reader_that_is_as_silent_as_pydicom_is_found(silence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, base = read_slice(BASES["explicit, uid"]()), base_of("explicit, uid")
    old, new = SILENCES[silence]
    assert base.data.count(old) == 1
    monkeypatch.setattr(judging, "read_slice", lambda data: good)
    assert f"pydicom: silent about {silence}" in judge(base.data.replace(old, new), base).unjudged
    with pytest.raises(Rejection):
        read_slice(base.data.replace(old, new))


def test_the_same_number_and_seed_make_the_same_file() -> None:
    assert changed_file(7, seed=3) == changed_file(7, seed=3)
    assert changed_file(7, seed=3) != changed_file(7, seed=4)
