from __future__ import annotations

import pytest
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ich_ray.search.tune.first_error import FirstError
from ich_ray.search.tune.ledger_callback import LedgerCallback
from ich_ray.search.tune.sampler import LedgerSampler
from ich_ray.search.tune.scheduler import StoppingScheduler


class Hooks(tune.Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_step_end(self, iteration: int, trials: list[object], **info: object) -> None:
        self.calls += 1
        if iteration == 13:
            raise OSError("planted")

    def on_trial_start(self, iteration: int, trials: list[object], trial: object, **info: object) -> None:
        self.calls += 1

    def own(self) -> str:
        return "not Tune's"


def test_after_the_first_error_every_call_ends_with_it() -> None:
    first, hooks = FirstError(), Hooks()
    first.watch(hooks, tune.Callback)
    hooks.on_step_end(1, [])
    first.tell()
    with pytest.raises(OSError, match="planted") as raised:
        hooks.on_step_end(13, [])
    for again in (lambda: hooks.on_trial_start(2, [], None), lambda: hooks.on_step_end(3, []), first.tell):
        with pytest.raises(OSError, match="planted") as caught:
            again()
        assert caught.value is raised.value is first.error
    assert hooks.calls == 2
    assert hooks.own() == "not Tune's"


def test_an_interrupt_is_no_error() -> None:
    class Stopped(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[object], **info: object) -> None:
            raise KeyboardInterrupt

    first, hooks = FirstError(), Stopped()
    first.watch(hooks, tune.Callback)
    with pytest.raises(KeyboardInterrupt):
        hooks.on_step_end(1, [])
    assert first.error is None


@pytest.mark.parametrize(
    ("ours", "kind", "called"),
    [
        (LedgerSampler, Searcher, {"suggest", "on_trial_result", "on_trial_complete"}),
        (StoppingScheduler, TrialScheduler, {"on_trial_result", "on_trial_add", "on_trial_error", "on_trial_complete"}),
        (
            LedgerCallback,
            tune.Callback,
            {
                "on_trial_start",
                "on_trial_result",
                "on_trial_recover",
                "on_trial_error",
                "on_trial_complete",
                "on_step_end",
            },
        ),
    ],
)
def test_all_that_tune_calls_is_watched(ours: type, kind: type, called: set[str]) -> None:
    hooks = ours.__new__(ours)
    FirstError().watch(hooks, kind)
    assert vars(hooks).keys() >= called
