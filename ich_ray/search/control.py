"""Ask something of a search that runs: end or add a trial, change how many, pause.

The search's driver reads it, checks it and answers in search.json; here it is written and the answer awaited.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from ich_ray.errors import ConfigError
from ich_ray.results import open_search
from ich_ray.search.request_files import post_request, waiting_requests
from ich_ray.search_records import ControlRequest, RequestNote, SearchRecord
from ich_ray.storage import (
    Location,
    SearchFiles,
    first_problem,
    is_held,
    is_local,
    parse_json,
    read_record,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ich_ray.trial_records import Parameter

__all__ = ["Reply", "control_search", "parse_point", "waiting"]

_LOOK_EVERY_S = 0.5


class Reply(NamedTuple):
    """What came of a request.

    Attributes:
        id: of the request.
        request: what was asked.
        note: the answer of the search's driver, None where there was none yet.
    """

    id: str
    request: ControlRequest
    note: RequestNote | None

    def __str__(self) -> str:
        if self.note:
            return self.note.answer
        return (
            f"{self.request}: no answer yet, the driver reads it as soon as it can, or the next one that goes on with "
            "the search; `ich-ray control` without a flag has the answers"
        )


def control_search(
    search: Location,
    *,
    stop_trial: int | None = None,
    add: Mapping[str, Parameter] | None = None,
    trials: int | None = None,
    concurrent: int | None = None,
    pause: bool | None = None,
    wait_s: float = 15.0,
) -> Reply:
    """Ask one thing of a search that runs, and wait for the answer.

    Args:
        search: its folder, also on another machine or in object storage.
        stop_trial: the number of a trial that is to end at its next report.
        add: parameters of a trial that is to run next, beside those asked for; what they leave out is drawn.
        trials: in all.
        concurrent: trials at a time, as far as there is room.
        pause: True for no new trials, False to go on.
        wait_s: for the answer, which takes up to five seconds while trials run.

    Raises:
        ConfigError: the search does not run, or refuses; the reason is named.
    """
    asked = {"stop_trial": stop_trial, "add": add, "trials": trials, "concurrent": concurrent, "pause": pause}
    request = _request({name: value for name, value in asked.items() if value is not None})
    files = open_search(search).files
    files.check_no_links()
    if is_local(files.root) and not is_held(files.lock):
        raise ConfigError(
            f"{files.root}: a search must be at work to be controlled, got one that has ended or was stopped; go on "
            "with it: `ich-ray search --resume`, with --trials or --concurrent"
        )
    name = post_request(files, request)
    note = _awaited(files, name, wait_s)
    if note and not note.done:
        raise ConfigError(f"{files.root}: {note.answer}")
    return Reply(name, request, note)


def waiting(search: Location) -> list[str]:
    """Ids of the requests to a search that are not answered yet, the oldest first."""
    found = open_search(search)
    answered = {note.id for note in found.record.requests}
    return waiting_requests(found.files, answered)


def parse_point(text: str) -> dict[str, Any]:
    """Parameters of a trial from the command line.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        point = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--add: must be JSON, got {error}; write --add '{{\"dropout\": 0.3}}'") from None
    if not isinstance(point, dict):
        raise ConfigError(f"--add: must be a JSON object, got {text[:80]!r}; write --add '{{\"dropout\": 0.3}}'")
    return point


def _request(asked: dict[str, Any]) -> ControlRequest:
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked) or "nothing"
    if len(asked) != 1:
        raise ConfigError(f"control: one thing is asked at a time, got {flags}; give one of them after the other")
    try:
        return ControlRequest(time=time.time(), **asked)
    except ValidationError as error:
        raise ConfigError(f"{flags}: {first_problem(error)}; give another value") from None


def _awaited(files: SearchFiles, name: str, wait_s: float) -> RequestNote | None:
    until = time.monotonic() + wait_s
    while True:
        is_last = time.monotonic() >= until
        record = read_record(files.search, SearchRecord, "restore the file from a copy")
        if found := next((note for note in record.requests if note.id == name), None):
            return found
        if is_last:
            return None
        time.sleep(_LOOK_EVERY_S)
