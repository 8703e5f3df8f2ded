from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training import inference, loop
from ich_ray.training.data_parallel import Shard
from ich_ray.training.inference import in_batches
from ich_ray.training.loop import TrainingBudget, train
from ich_ray.training.network_inputs import NetworkInputs
from ich_ray.training.stream import Lookahead, Stream
from tests.prepared import make_dataset


def test_a_look_ahead_gives_every_place_of_the_stream_once_and_ends_with_it() -> None:
    stream, ahead = Stream(7, seed=3), Lookahead(7, seed=3, end=20)
    parts = [ahead.coming(start, start + 4 + 6) for start in range(0, 20, 4)]
    assert [len(part) for part in parts] == [10, 4, 4, 2, 0]
    assert np.concatenate(parts).tolist() == stream.slices(0, 20).tolist()


def test_a_look_ahead_that_resumes_gives_nothing_of_what_is_over() -> None:
    assert Lookahead(7, seed=3, end=20).coming(12, 17).tolist() == Stream(7, seed=3).slices(12, 5).tolist()


class Noted(list[tuple[str, int]]):
    """What was told and what was taken, by position, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        for name in ("will_take", "take"):
            usual = getattr(NetworkInputs, name)
            monkeypatch.setattr(
                NetworkInputs, name, lambda *given, name=name, usual=usual: self._note(usual, name, given)
            )

    def _note(self, usual: Any, name: str, given: tuple[Any, ...]) -> Any:
        self.extend((name, int(position)) for position in given[1])
        return usual(*given)

    def of(self, name: str) -> list[int]:
        return [position for what, position in self if what == name]

    @property
    def least_ahead(self) -> int:
        """Images told beyond what is taken, before each is."""
        told, taken, least = 0, 0, len(self)
        for what, _ in self:
            if what == "take":
                least, taken = min(least, told - taken), taken + 1
            else:
                told += 1
        return least


def test_a_training_tells_of_every_image_before_it_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "IMAGES_AHEAD", 24)
    slices = make_dataset(tmp_path / "data", patients=20).role("train")
    noted = Noted(monkeypatch)
    quick = Hyperparameters(filters=2, dense=0, blocks=1, batch_size=16)
    budget = TrainingBudget(100, 45)  # cut at 45 and 90, over two epochs of 44
    progress = train(quick, slices, None, budget=budget, seed=1)
    state = next(progress).state()
    list(progress)
    assert noted.of("will_take") == noted.of("take") == Stream(len(slices), 1).slices(0, 100).tolist()
    assert noted.least_ahead == 1  # the last one
    assert [name for name, _ in noted[:56]] == ["will_take"] * 40 + ["take"] * 16
    noted.clear()
    list(train(quick, slices, None, budget=budget, seed=1, resume=state))
    assert noted.of("will_take") == noted.of("take") == Stream(len(slices), 1).slices(45, 55).tolist()


def test_a_validation_tells_of_every_image_before_it_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "IMAGES_AHEAD", 24)
    slices = make_dataset(tmp_path / "data", patients=20).role("train")
    noted = Noted(monkeypatch)
    from ich_ray.training.network_inputs import place_inputs

    inputs = place_inputs(Hyperparameters(), slices, loop.torch.device("cpu"))
    assert sum(len(batch) for batch in in_batches(inputs, np.arange(44), 16)) == 44
    assert noted.of("will_take") == noted.of("take") == list(range(44))
    assert [name for name, _ in noted[:56]] == ["will_take"] * 40 + ["take"] * 16


def test_the_workers_of_a_training_tell_of_all_images_together() -> None:
    coming = Stream(50, 0).slices(16, 45)
    parts = [Shard(rank, 3).part(coming) for rank in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(coming.tolist())
