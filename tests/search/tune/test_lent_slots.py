from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from ich_ray.search.tune import lent_slots as module
from ich_ray.search.tune.lent_slots import NOTHING_LENT, Lent, LentSlots

ONE, TWO = Lent(1, ("3",)), Lent(2, ("1", "2"))


class Keepers:
    """Stands in for Ray: actors by the number in their names, with what they answer, or None for those that do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.say: dict[int, Any] = {}
        self.named: set[int] | None = None
        self.answers: list[Any] = []
        self.waited: list[tuple[int, float]] = []
        self.util = SimpleNamespace(list_named_actors=lambda: [*map(self.name, self.say), "other", None])
        monkeypatch.setattr(module, "ray", self)
        self.lent = LentSlots("search", 1)

    @staticmethod
    def name(number: int) -> str:
        return f"{module._prefix('search', 1)}{number}"

    def is_initialized(self) -> bool:
        return True

    def get_actor(self, name: str) -> Any:
        number = int(name.rpartition("-")[2])
        if self.named is not None and number not in self.named:
            raise ValueError(name)
        return SimpleNamespace(lent=SimpleNamespace(remote=lambda: self.ask(number)))

    def ask(self, number: int) -> tuple[int, int]:
        self.answers.append(self.say[number])
        return number, len(self.answers) - 1

    def start(self, number: int, lent: Lent) -> None:
        """It answers what it was asked before, too."""
        self.say[number] = lent
        self.answers = [lent if one is None else one for one in self.answers]

    def wait(self, asked: list[tuple[int, int]], *, num_returns: int, timeout: float) -> Any:
        ready = [one for one in asked if self.answers[one[1]] is not None]
        self.waited += [(num_returns - len(ready), timeout)] if len(ready) < num_returns and timeout else []
        return ready, []

    def get(self, asked: tuple[int, int]) -> Any:
        answer = self.answers[asked[1]]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_all_keepers_hold_is_lent_in_the_order_of_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers = Keepers(monkeypatch)
    assert keepers.lent.now() == NOTHING_LENT
    keepers.say = {10: TWO, 9: ONE}
    assert keepers.lent.now() == Lent(3, ("3", "1", "2"))
    keepers.say[9] = NOTHING_LENT
    assert keepers.lent.now() == TWO, "taken back"
    assert keepers.waited == []


@pytest.mark.parametrize("late", [None, ActorUnavailableError("busy", None)])
def test_a_keeper_that_answers_late_holds_what_it_held(monkeypatch: pytest.MonkeyPatch, late: object) -> None:
    keepers = Keepers(monkeypatch)
    keepers.say = {1: ONE}
    assert keepers.lent.now() == ONE
    keepers.say[1] = late
    assert [keepers.lent.now(), keepers.lent.now()] == [ONE, ONE]
    keepers.say[1] = NOTHING_LENT
    assert keepers.lent.now() == NOTHING_LENT


def test_a_keeper_that_is_dead_or_missing_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers = Keepers(monkeypatch)
    keepers.say = {1: ONE, 2: TWO, 3: ONE}
    assert keepers.lent.now().slots == 4
    keepers.say[1], keepers.named = ActorDiedError(), {1, 3}
    assert keepers.lent.now() == ONE
    del keepers.say[3]
    assert keepers.lent.now() == NOTHING_LENT


def test_training_waits_little_for_a_keeper_that_has_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers = Keepers(monkeypatch)
    keepers.say = {1: ONE}
    keepers.lent.now()
    keepers.say |= {2: None}
    assert [keepers.lent.now(), keepers.lent.now()] == [ONE, ONE]
    assert keepers.waited == [(1, 0.5), (1, 0.5)]
    keepers.start(2, TWO)
    assert keepers.lent.now() == Lent(3, ("3", "1", "2"))


def test_a_keeper_on_a_slow_machine_is_waited_for_once_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers = Keepers(monkeypatch)
    keepers.say = {1: None}
    keepers.lent.now()
    keepers.start(1, ONE)
    keepers.say[1] = None
    assert keepers.lent.now() == NOTHING_LENT, "what it answered then may be over"
    assert keepers.waited == [(1, 0.5), (1, 2.0)]


def test_without_ray_nothing_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ray", SimpleNamespace(is_initialized=lambda: False))
    assert LentSlots("search", 1).now() == NOTHING_LENT
