"""Questions answered side by side, each within its time: one that hangs is named, and not waited for."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from ich_ray.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Question", "answers"]


class Question(NamedTuple):
    """What to call, and how long it may take."""

    limit_s: float
    ask: Callable[[], Any]


def answers(questions: Mapping[str, Question]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the questions return, by name, and of those that return nothing in time, or fail, why.

    Each has a thread of its own, which is left behind where it hangs: a read of a share whose server is gone ends when
    the process does.
    """
    told: SimpleQueue[tuple[str, Any, str]] = SimpleQueue()

    def ask(name: str, question: Question) -> None:
        try:
            told.put((name, question.ask(), ""))
        except Exception as error:  # noqa: BLE001  (whatever a sick machine raises is the answer)
            told.put((name, None, f"{type(error).__name__}: {first_line(error)}"))

    began = time.monotonic()
    for name, question in questions.items():
        threading.Thread(target=ask, args=(name, question), daemon=True).start()
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    while waiting := questions.keys() - found.keys() - missing.keys():
        soonest = min(waiting, key=lambda name: questions[name].limit_s)
        left_s = began + questions[soonest].limit_s - time.monotonic()
        try:
            name, answer, problem = told.get(timeout=max(0.0, left_s))
        except Empty:
            missing[soonest] = f"nothing within {questions[soonest].limit_s:g} s"
            continue
        if problem:
            missing[name] = problem
        elif name not in missing:
            found[name] = answer
    return found, missing
