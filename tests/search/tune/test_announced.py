from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray import runtime
from ich_ray.errors import IntegrityError
from ich_ray.search.tune.announced import announced
from tests.search.test_search_messages import status


class Kept:
    """In place of a notifier."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.closed = False
        self.look: Any = None

    def send(self, text: str) -> None:
        self.told.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kept() -> Any:
    return Kept()


@pytest.fixture
def driver() -> Any:
    return SimpleNamespace(
        ledger=SimpleNamespace(record=SimpleNamespace(name="tiny", quarantines=[])),
        ledger_callback=SimpleNamespace(messages=None, standing=lambda _: status()),
        watchdog=SimpleNamespace(longest_limit_s=lambda: 300.0),
    )


def heads(kept: Any) -> list[str]:
    return [text.partition(": 12 of 20")[0] for text in kept.told]


def test_a_search_that_ends_is_told_and_its_driver_writes_messages_meanwhile(driver: Any, kept: Any) -> None:
    with announced(driver, kept):
        assert kept.look == driver.ledger_callback.messages.look
        assert kept.told == []
    assert heads(kept) == ["search tiny: has ended"]


def test_a_search_that_fails_is_told_and_fails(driver: Any, kept: Any) -> None:
    with pytest.raises(IntegrityError), announced(driver, kept):
        raise IntegrityError("/home/somebody/search: must be whole")
    assert heads(kept) == ["search tiny: failed (IntegrityError, its output says why)"]
    assert "somebody" not in str(kept.told)


def test_a_lost_head_is_told_before_it_ends_the_process(
    driver: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with announced(driver, kept):
        runtime._leave("head: lost")
        assert heads(kept) == ["search tiny: failed (IchRayError, its output says why)"]
    assert (kept.closed, ended) == (True, [1])


def test_without_a_notifier_nobody_is_told(driver: Any) -> None:
    with announced(driver, None):
        assert driver.ledger_callback.messages is None
