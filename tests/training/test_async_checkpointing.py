"""A state is written while its training goes on; nothing here waits for a clock."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from upath import UPath

from ich_ray.training.async_checkpointing import AsyncCheckpointer
from ich_ray.training.checkpoint_store import Checkpoint

STATE = Checkpoint(UPath("a.safetensors"), "0" * 64, 100, ())
WITHIN_S = 60


class Write:
    """A write that ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = threading.Event(), threading.Event(), False

    def __call__(self) -> Checkpoint:
        self.begun.set()
        assert self.may_end.wait(WITHIN_S)
        self.ended = True
        return STATE


def failing() -> Checkpoint:
    raise OSError("planted")


def test_the_training_goes_on_while_a_state_is_written_and_the_next_one_waits_for_it() -> None:
    first, second = Write(), Write()
    with AsyncCheckpointer() as saving:
        saving.start(first)
        assert first.begun.wait(WITHIN_S)
        assert not first.ended
        first.may_end.set()
        second.may_end.set()
        saving.start(second)
        assert first.ended
        assert saving.finish() == STATE
        assert saving.finish() is None
    assert second.ended


NEXT: dict[str, Callable[[AsyncCheckpointer], object]] = {
    "finish": AsyncCheckpointer.finish,
    "start": lambda saving: saving.start(failing),
    "end": lambda saving: saving.__exit__(None, None, None),
}


@pytest.mark.parametrize("occasion", NEXT)
def test_an_error_is_raised_once_at_the_next_occasion(occasion: str) -> None:
    saving = AsyncCheckpointer()
    saving.start(failing)
    with pytest.raises(OSError, match="planted"):
        NEXT[occasion](saving)
    assert saving.finish() is None


def test_what_ended_a_training_is_told_and_its_state_is_whole_by_then() -> None:
    def training(write: Write) -> None:
        with AsyncCheckpointer() as saving:
            saving.start(write)
            assert write.begun.wait(WITHIN_S)
            ends = threading.Timer(0.05, write.may_end.set)  # whenever that is: it is waited for
            ends.start()
            raise ValueError("of the training")

    write = Write()
    with pytest.raises(ValueError, match="of the training"):
        training(write)
    assert write.ended


def test_what_ended_a_training_is_told_and_not_that_a_state_could_not_be_written_either() -> None:
    def training() -> None:
        with AsyncCheckpointer() as saving:
            saving.start(failing)
            raise ValueError("of the training")

    with pytest.raises(ValueError, match="of the training"):
        training()
