"""Requests to a running search as files in its folder: written by whoever asks, read by its driver.

Whoever can write into the folder may ask; what they have written is data of bounded size.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from ich_ray.errors import IntegrityError
from ich_ray.search_records import ControlRequest, RequestId
from ich_ray.storage import check_regular, exists, first_problem, is_local, parse_json, read_bytes, write_json

if TYPE_CHECKING:
    from collections.abc import Container

    from upath import UPath

    from ich_ray.storage import SearchFiles

__all__ = ["post_request", "read_request", "waiting_requests"]

# One with 200 parameters takes a tenth of it.
_LARGEST_BYTES = 64 << 10
# Of files that are looked at at a time; the others wait.
_MOST_FILES = 100
_REMEDY = "ask again with `ich-ray control`"
_ID = TypeAdapter[str](RequestId)


def post_request(files: SearchFiles, request: ControlRequest) -> str:
    """Ask a search for something; the id of the request."""
    name = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}"
    write_json(files.request(name), request.model_dump(mode="json"))
    return name


def waiting_requests(files: SearchFiles, answered: Container[str] = ()) -> list[str]:
    """Ids of the requests that lie there, the oldest first; files of other names are none.

    Args:
        files: of the search.
        answered: ids of those that may lie there for ever, where another user has made the folder.
    """
    if not exists(files.requests) or (is_local(files.requests) and files.requests.is_symlink()):
        return []
    found = (path.stem for path in files.requests.iterdir() if path.suffix == ".json" and _is_id(path.stem))
    return sorted(name for name in found if name not in answered)[:_MOST_FILES]


def _is_id(name: str) -> bool:
    try:
        _ID.validate_python(name)
    except ValidationError:
        return False
    return True


def read_request(path: UPath) -> ControlRequest:
    """What a request asks.

    Raises:
        IntegrityError: it is a link, a pipe, too large, no JSON, or does not ask for exactly one thing.
        OSError: it cannot be read now, or is gone.
    """
    if is_local(path) and path.is_symlink():
        raise IntegrityError(f"a request must be a file, got a link; {_REMEDY}")
    check_regular(path, _REMEDY)
    data = read_bytes(path, _LARGEST_BYTES + 1)
    if len(data) > _LARGEST_BYTES:
        raise IntegrityError(f"a request must have at most {_LARGEST_BYTES >> 10} KiB, got more; {_REMEDY}")
    try:
        request = ControlRequest.model_validate(parse_json(data))
    except ValidationError as error:
        raise IntegrityError(f"a request must match its format, got {first_problem(error)}; {_REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"a request must be JSON, got {error}; {_REMEDY}") from None
    if len(request.named) != 1:
        got = ", ".join(request.named) or "none"
        raise IntegrityError(f"a request must ask for one thing, got {got}; {_REMEDY}")
    return request
