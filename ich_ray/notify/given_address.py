"""The address for messages as a command is given it: taken to where nobody else reads it.

Whoever may list processes sees their arguments, and Ray writes those of a driver into the records of its cluster.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

__all__ = ["FLAG", "VARIABLE", "asked_for", "hide_address", "taken_off"]

VARIABLE = "ICH_RAY_NOTIFY"
FLAG = "--notify"
# Whose own flag it is; to others the words belong that stand behind them.
_VERBS = frozenset({"search", "confirm", "retrain", "run"})


def asked_for(flag: str | None, environ: MutableMapping[str, str] = os.environ) -> str | None:
    """What a flag says, else the environment, from which it is taken: no process started later has it."""
    told = environ.pop(VARIABLE, None)
    return flag if flag is not None else told or None


def hide_address(arguments: Sequence[str]) -> None:
    """Start this process anew, with the address in its environment, if it stands in the arguments.

    The number of the process, its folder and what it is connected to stay.

    Args:
        arguments: of the command, its verb first.
    """
    kept, address = taken_off(arguments)
    if address is None:
        return
    interpreter = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    os.environ[VARIABLE] = address
    os.execv(sys.executable, [sys.executable, *interpreter, *kept])  # noqa: S606  (our own command again)


def taken_off(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without the flag and its address, and the address.

    None where there is none, or only the name of a file: then nothing is taken off.
    """
    if next((word for word in arguments if word != "--debug"), None) not in _VERBS:  # which may stand anywhere
        return [*arguments], None
    kept: list[str] = []
    address, words = None, iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != FLAG:
            kept.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None or given.startswith("@"):
            kept += [word] if equals or given is None else [word, given]
        else:
            address = given
    return kept, address
