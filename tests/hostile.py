"""Hostile values for every field of every record, made from the records themselves: a new field is tried by itself."""

from __future__ import annotations

import importlib
import io
import json
import math
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

import ich_ray
from ich_ray.errors import IntegrityError
from ich_ray.model.hyperparameters import REGISTERED, Hyperparameters
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.storage import Record, read_record

PACKAGE = Path(ich_ray.__file__).parent

# As JSON texts. What says `secret` may not be found again, nor what is no number.
NUMBERS = ("NaN", "Infinity", "1e999", "1" + "0" * 400, str(2**63), str(-(2**63) - 1), "-1")
TEXTS = tuple(
    json.dumps(text)
    for text in (
        "../x",
        "/etc/passwd",
        "--out=x",
        "$(id)",
        "a\x1b[31m",
        "a\r\nb",
        "a\u202eb",
        "a\x00b",
        "s3://key:secret@bucket/x",
        "https://host/x?X-Amz-Signature=secret",
        "A" * 64,
        "a" * 64 + "\n",
    )
)
SHAPES = ("null", "true", "[" * 400 + "]" * 400, '{"a": ' * 60 + "1" + "}" * 60, "[[1, [NaN]]]")
# Of a text that leads or points somewhere: only a text that is shown and never used may be one.
PATHS = ('"../x"', '"/etc/passwd"')
_PLACE = "\ue000"
_ID_OF_REQUEST = "1700000000000-0123abcd"
_CANDIDATES: tuple[Any, ...] = ("name", "a" * 64, "a" * 32, "a" * 24, "a" * 12, 1, 0.5, True, _ID_OF_REQUEST)


def kinds() -> list[type[BaseModel]]:
    """All records of the package, and what they hold that is validated by itself."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            importlib.import_module(name)
    found: list[type[BaseModel]] = []
    waiting = [kind for kind in _below(Record) if kind.__module__.startswith("ich_ray.")]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.append(kind)
            waiting += [held for field in kind.model_fields.values() for held in _held(field.annotation)]
    return sorted(found, key=named)


def named(kind: type[BaseModel]) -> str:
    return f"{kind.__module__.removeprefix('ich_ray.')}.{kind.__name__}"


def _below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _held(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _held(part)


def example(kind: type[BaseModel]) -> dict[str, Any]:
    """A record as its file holds it, every field given."""
    if kind.__name__ == "SearchRecord":  # its amendments are records in all but name
        change = next(each for each in _below(Record) if each.__name__ == "_Amendment")
        return {**_fields(kind, but="amendments"), "amendments": [example(change)]}
    return _fields(kind)


def _fields(kind: type[BaseModel], but: str = "") -> dict[str, Any]:
    return {
        # Any text is one, but only a registered one is read.
        name: (Hyperparameters if name in REGISTERED else kind).model_fields[name].default
        if name in REGISTERED or (kind is SequenceParameters and name == "model")
        else _value(Annotated[(field.annotation, *field.metadata, None)], field.default)
        for name, field in kind.model_fields.items()
        if name != but
    }  # fmt: skip


def _value(annotation: Any, default: Any = None) -> Any:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated and not _is_plain(parts[0]):
        return _value(parts[0])
    if origin in {Union, types.UnionType}:
        return _value(next(part for part in parts if part is not type(None)))
    if origin is tuple:
        return [_value(part) for part in parts if part is not ...]
    if origin is dict:
        return {_value(parts[0]): _value(parts[1])}
    if not _is_plain(annotation):
        return parts[0] if origin is Literal else example(annotation)
    return next(value for value in (*_CANDIDATES, default) if _fits(annotation, value))


def _is_plain(annotation: Any) -> bool:
    """A text, a number or anything, with what else must hold of it."""
    origin = get_origin(annotation)
    return origin is Annotated or (
        origin is None and not (isinstance(annotation, type) and issubclass(annotation, BaseModel))
    )


def _fits(annotation: Any, value: Any) -> bool:
    try:
        return bool(TypeAdapter(annotation).validate_python(value, strict=True) == value)
    except ValidationError:
        return False


def variants(kind: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """The field, what is put there as JSON, and the whole file; nested records are tried as kinds of their own."""
    whole = example(kind)
    for name, field in kind.model_fields.items():
        nested = any(True for _ in _held(field.annotation))
        tried = _outer(whole[name]) if nested else _replaced(whole[name])
        places = [whole | {name: each} for each in tried]
        for place in places:
            text = json.dumps(place)
            for hostile in (*NUMBERS, *TEXTS, *SHAPES):
                is_key = f'"{json.dumps(_PLACE)[1:-1]}":' in text
                if not is_key or hostile in TEXTS:
                    yield name, hostile, text.replace(json.dumps(_PLACE), hostile)


def _outer(value: Any) -> Iterator[Any]:
    """The place in the stead of the value, and of its key."""
    yield _PLACE
    if isinstance(value, dict) and len(value) == 1:
        yield dict(zip([_PLACE], value.values(), strict=True))


def _replaced(value: Any) -> Iterator[Any]:
    """The value with each of its leaves and keys replaced by the place, one after the other, and itself."""
    yield _PLACE
    if isinstance(value, list):
        for index, held in enumerate(value):
            yield from ([*value[:index], each, *value[index + 1 :]] for each in _replaced(held))
    elif isinstance(value, dict):
        for key, held in value.items():
            yield {_PLACE: held}
            yield from (value | {key: each} for each in _replaced(held))


class _File:
    """A file that is not on the disk: thousands of them are read in a second."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return "record.json"

    def open(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._text.encode())


def accepted(kind: type[BaseModel]) -> Iterator[tuple[str, str, BaseModel]]:
    """What was read of all variants in spite of everything: the field, what was put there, the record."""
    for name, hostile, text in variants(kind):
        try:
            yield name, hostile, read_record(_File(text), kind, "restore the file")  # type: ignore[arg-type]
        except IntegrityError as error:
            said = str(error)
            if not said.isprintable() or "secret" in said or not said.startswith("record.json: must "):
                raise AssertionError(f"{name}: {hostile}: {said!r}") from None


def leaves(value: Any) -> Iterator[Any]:
    """Every text and number in what JSON holds, keys too."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield key
            yield from leaves(held)
    elif isinstance(value, list):
        for held in value:
            yield from leaves(held)
    else:
        yield value


def is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def is_harmless(text: str) -> bool:
    """Nothing in it steers a terminal; lines may stand below each other."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def properties(held: list[Any]) -> Iterator[str]:
    """What most fields must never hold: secrets, several lines, numbers beyond 63 bits or below zero."""
    texts = [text for text in held if isinstance(text, str)]
    numbers = [number for number in held if isinstance(number, int) and not isinstance(number, bool)]
    yield from ["secret"] * any("secret" in text for text in texts)
    yield from ["lines"] * any("\n" in text for text in texts)
    yield from ["seed"] * any(number >= 2**63 for number in numbers)
    yield from ["signed"] * any(number < 0 for number in numbers)


def judged(taken: set[str]) -> Iterator[str]:
    """What a field is, by all that it took: a text, an address, a file; and what else it may hold."""
    if any(path in taken for path in PATHS):
        yield "text" if '"--out=x"' in taken else "address"
    elif '"$(id)"' in taken:
        yield "file"
    if "secret" in taken and '"--out=x"' not in taken:
        yield "secret"
    yield from sorted(taken & {"lines", "seed", "signed"})
