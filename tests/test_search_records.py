from __future__ import annotations

import math
from typing import Any

import pytest

from ich_ray.search_records import ControlRequest, EndCheck, RequestNote
from tests.records import make_record


def test_amendments_change_what_is_wanted() -> None:
    amended = make_record().model_copy(
        update={"amendments": ({"time": 1.0, "trials": 20}, {"time": 2.0, "warm_start": "/a"}, {"trials": 30})}
    )
    assert (make_record().wanted, amended.wanted) == (9, 30)
    assert (make_record().warm_starts, amended.warm_starts) == ((), ("/a",))


@pytest.mark.parametrize(
    ("there", "ended_with", "asked", "out_of_time", "all_begun"),
    [
        (9, None, 9, False, True),
        (8, None, 9, False, False),
        (5, 5, 9, True, True),
        (5, 5, 9, False, False),
        (6, 5, 9, True, False),  # it went on since
        (5, 5, 7, True, False),  # more were asked for since
        (9, 5, 9, True, True),
    ],
)
def test_a_search_begins_no_more_trials_with_all_or_when_its_time_was_over(
    there: int, ended_with: int | None, asked: int, out_of_time: bool, all_begun: bool
) -> None:
    ends = [] if ended_with is None else [
        EndCheck(trials=ended_with, asked=asked, sampler=5, tune=5, out_of_time=out_of_time).model_dump()
    ]  # fmt: skip
    record = make_record(trials=9, amendments=tuple({"ended": end} for end in ends))
    assert record.has_begun_all(there) is all_begun


def test_pauses_are_what_was_carried_out() -> None:
    def asked(at: float, **what: Any) -> dict[str, Any]:
        done = what.pop("done", True)
        note = RequestNote(id=f"{int(at):013d}-00000000", asked=ControlRequest(time=at, **what), done=done, answer="so")
        return {"time": at, "request": note.model_dump(mode="json")}

    record = make_record(name="x", trials=10)
    assert record.pauses == []
    told = (
        *(asked(5.0, pause=False), asked(10.0, pause=True), asked(20.0, trials=30), asked(30.0, pause=True)),
        *(asked(35.0, pause=False, done=False), asked(40.0, pause=False), asked(50.0, pause=True)),
    )
    assert record.model_copy(update={"amendments": told}).pauses == [(10.0, 40.0), (50.0, math.inf)]
