"""Read and write card.json of a bundle, with its checklist answered anew.

Without it there is no bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.bundle.card import Card
from ich_ray.bundle.checklist import checklist
from ich_ray.errors import ConfigError
from ich_ray.storage import exists, read_record, write_json

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["check_no_bundle", "has_card", "read_card", "write_card"]

_FILE = "card.json"


def has_card(folder: UPath) -> bool:
    """Whether there is a bundle in `folder`."""
    return exists(folder / _FILE)


def check_no_bundle(target: UPath, source: UPath) -> None:
    """A bundle made of that in `source` may not replace one.

    Raises:
        ConfigError: there is one in `target`.
    """
    if target == source or has_card(target):
        raise ConfigError(
            f"--out {target}: a folder without a bundle must be given, got one with a bundle; name another"
        )


def read_card(folder: UPath) -> Card:
    """The card of the bundle in `folder`.

    Raises:
        ConfigError: there is no bundle.
        IntegrityError: the card does not match its format.
    """
    if not has_card(folder):
        raise ConfigError(f"{folder}: a bundle holds card.json, got none; check the path or run `ich-ray retrain`")
    return read_record(folder / _FILE, Card, "restore the file or retrain")


def write_card(folder: UPath, card: Card) -> None:
    """Write the card atomically, in the newest format."""
    answered = card.model_copy(update={"format": 2, "checklist": checklist(card)})
    write_json(folder / _FILE, answered.model_dump(mode="json"))
