"""Questions that hang, fail or are answered."""

from __future__ import annotations

import threading

from ich_ray.cluster.time_limits import Question, answers


def test_what_hangs_is_named_and_not_waited_for() -> None:
    forever = threading.Event()

    def fail() -> None:
        raise OSError(5, "Input/output error")

    try:
        found, missing = answers({
            "stuck": Question(0.05, forever.wait),
            "broken": Question(60.0, fail),
            "good": Question(60.0, lambda: 7),
        })  # fmt: skip
    finally:
        forever.set()
    assert found == {"good": 7}
    assert missing == {"stuck": "nothing within 0.05 s", "broken": "OSError: [Errno 5] Input/output error"}


def test_nothing_asked_is_nothing_answered() -> None:
    assert answers({}) == ({}, {})
