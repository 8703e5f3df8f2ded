"""JSON files that somebody else may have written, read as records of one kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ich_ray.errors import IntegrityError
from ich_ray.storage.addresses import without_credentials
from ich_ray.storage.files import read_json
from ich_ray.storage.places import unreadable

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["Record", "first_problem", "read_record"]


class Record(BaseModel):
    """A record in a JSON file: frozen, of finite numbers, without unknown keys.

    Fields have the kinds of kinds.py, so that whatever a file says cannot be more than data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_LONGEST_PLACE = 200
Kind = TypeVar("Kind", bound=BaseModel)


def read_record(path: UPath, kind: type[Kind], remedy: str) -> Kind:
    """Read a JSON file as a record of one kind.

    Args:
        path: the file.
        kind: what it must be.
        remedy: the end of the error's message: what its reader can do.

    Raises:
        FileNotFoundError: it is not there.
        ConfigError: nobody may read it.
        IntegrityError: the file is not JSON, or not of this kind; the first wrong place is named.
    """
    try:
        return kind.model_validate(read_json(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None
    except ValidationError as error:
        raise IntegrityError(f"{path}: must match its format, got {first_problem(error)}; {remedy}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem of a record in a line: `Field required at number`.

    A key of the file is escaped.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))[:_LONGEST_PLACE]
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in without_credentials(where))
    return f"{first['msg']} at {shown}" if where else str(first["msg"])
