"""A race over rounds, with trainings that a function makes up in place of Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.cli import call
from ich_ray.refit import confirm as module
from ich_ray.refit.confirm_race import Runner
from ich_ray.refit.confirmation import chosen_trial, confirmed
from ich_ray.refit.race_record import RaceNote
from ich_ray.refit.racing import Race
from ich_ray.results import SearchResult, open_search
from ich_ray.search import cluster_resources, preflight, run
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.preflight import Slots
from ich_ray.search.space.space import Listed
from ich_ray.search_records import SearchRecord
from ich_ray.storage import read_json, write_json
from tests.prepared import make_dataset

SPACE = {
    "name": "by-hand",
    "objective": {"metric": "average_precision", "mode": "max"},
    "budget": {"images": 900, "report_every": 300, "first_rung": 300, "reduction": 3, "min_peers": 3},
    "parameters": {"dropout": {"uniform": [0.0, 0.8]}, "filters": {"fixed": 8}},
}


def worth(dropout: float) -> float:
    return 0.8 - (dropout - 0.4) ** 2


@pytest.fixture
def found(tmp_path: Path) -> SearchResult:
    """Twenty trials, each second one stopped; the favorite, trial 3, is a lucky one."""
    record = SearchRecord(
        name="by-hand", space=SPACE, dataset="d", fingerprint="f" * 32, prevalence=0.3, seed=0, trials=20,
        versions={}, created=0.0,
    )  # fmt: skip
    ledger = Ledger.create(tmp_path / "s", record)
    for number in range(20):
        ledger.add({"dropout": number / 25, "filters": 8})
        luck = 0.12 if number == 3 else 0.01 * (number % 3 - 1)
        for images, share in ((300, 0.8), (600, 0.9), (900, 1.0)):
            end = Verdict("completed") if images == 900 else None
            if number % 2 == 0 and images == 600:
                end = Verdict("pruned", "rung_600")
            value = worth(number / 25) * share + luck
            ledger.report(number, images, {"average_precision": value}, 1.0, end=end)
            if end:
                break
    return open_search(tmp_path / "s")


class Trainings:
    """Stands in for Tune: each training of a round ends as `outcome` says, by its number and dropout."""

    def __init__(self, ledger: Ledger, outcome: Callable[[int, float], float | None]) -> None:
        self.ledger, self.outcome = ledger, outcome
        self.rounds: list[list[tuple[int | None, int | None]]] = []

    def __call__(self, listed: Sequence[Listed]) -> None:
        self.rounds.append([(one.repeats, one.fold) for one in listed])
        started = [trial.number for trial in self.ledger.unfinished]
        started += [self.ledger.add(one.parameters, repeats=one.repeats, fold=one.fold).number for one in listed]
        for number in started:
            value = self.outcome(number, float(self.ledger.trials[number].parameters["dropout"]))
            if value is None:
                self.ledger.finish(number, Verdict("failed", "out_of_memory"))
            else:
                self.ledger.report(number, 900, {"average_precision": value}, 1.0, end=Verdict("completed"))


def ledger_of(found: SearchResult, folder: Path) -> Ledger:
    return Ledger.create(folder, found.record.model_copy(update={"name": "c", "trials": 0}))


def raced(found: SearchResult, ledger: Ledger, outcome: Callable[[int, float], float | None], **keys: int) -> Trainings:
    race: Race = module._race(found, "seeds")
    train = Trainings(ledger, outcome)
    Runner(race, ledger, [None] * 5, **{"allowed": 6, "at_a_time": 1, **keys}).run(train)
    return train


def true(number: int, dropout: float) -> float:
    return worth(dropout) + 0.01 * (number % 3 - 1)


def test_luck_loses_a_race_within_its_trainings(found: SearchResult, tmp_path: Path) -> None:
    ledger = ledger_of(found, tmp_path / "c")
    train = raced(found, ledger, true)
    assert found.best().number == 3
    assert all(len(one) == 1 for one in train.rounds)
    assert len(train.rounds) <= 6
    trained = open_search(ledger.files.root)
    confirmation = module._raced(found, trained, module._race(found, "seeds"), "seeds", share=0.15, allowed=6)
    assert confirmation.race == RaceNote(share=0.15, allowed=6, trainings=len(train.rounds))
    assert worth(confirmation.chosen / 25) > 0.79
    chosen = next(one for one in confirmation.candidates if one.trial == confirmation.chosen)
    assert (chosen.dropped, chosen.estimate) == (None, pytest.approx(worth(confirmation.chosen / 25), abs=0.03))
    assert sum(one.p_best or 0.0 for one in confirmation.candidates) > 0.9
    assert confirmation.images == 900 * len(train.rounds)
    trainings = Counter(trial for one in train.rounds for trial, _ in one)
    assert {one.trial: len(one.values) for one in confirmation.candidates if one.values} == trainings
    untrained = [one.trial for one in confirmation.candidates if not one.values]
    assert untrained, "a candidate that had a chance when it began and never trained is told, too"
    assert not set(untrained) & trainings.keys()
    assert "race" in confirmation.model_dump(mode="json")


def test_a_race_that_was_killed_goes_on_as_it_would_have(found: SearchResult, tmp_path: Path) -> None:
    whole, killed = ledger_of(found, tmp_path / "whole"), ledger_of(found, tmp_path / "killed")
    raced(found, whole, true)

    class Killed(Exception):
        pass

    def dies(number: int, dropout: float) -> float:
        if number == 2:
            raise Killed
        return true(number, dropout)

    with pytest.raises(Killed):
        raced(found, killed, dies)
    assert [trial.state for trial in Ledger.open(tmp_path / "killed").unfinished] == ["running"]
    train = raced(found, Ledger.open(tmp_path / "killed"), true)
    assert train.rounds[0] == []  # what was unfinished, before anything new
    ends = [
        [(trial.repeats, trial.value) for trial in open_search(tmp_path / name).trials] for name in ("whole", "killed")
    ]
    assert ends[0] == ends[1]
    assert raced(found, Ledger.open(tmp_path / "killed"), true).rounds == []


def test_more_to_spend_goes_on_from_what_is_there(found: SearchResult, tmp_path: Path) -> None:
    ledger = ledger_of(found, tmp_path / "c")
    assert len(raced(found, ledger, true, allowed=3).rounds) == 3
    assert sum(map(len, raced(found, ledger, true, allowed=5, at_a_time=2).rounds)) == 2


def test_what_fits_beside_each_other_leaves_three_rounds(found: SearchResult, tmp_path: Path) -> None:
    train = raced(found, ledger_of(found, tmp_path / "c"), true, allowed=7, at_a_time=16)
    assert [len(one) for one in train.rounds] == [3, 3, 1]


def test_who_fails_is_not_trained_again_before_the_next_call(found: SearchResult, tmp_path: Path) -> None:
    ledger = ledger_of(found, tmp_path / "c")
    train = raced(found, ledger, lambda *_: None, allowed=3)
    assert [len(one) for one in train.rounds] == [1, 1, 1]
    assert len({one[0][0] for one in train.rounds}) == 3
    assert sum(map(len, raced(found, ledger, true, allowed=3).rounds)) == 3


def test_what_failed_and_ran_again_counts_once_and_is_in_the_race(found: SearchResult, tmp_path: Path) -> None:
    ledger = ledger_of(found, tmp_path / "c")
    raced(found, ledger, lambda number, dropout: None if number == 0 else true(number, dropout), allowed=3)
    lost = ledger.trials[0].repeats
    assert lost is not None
    race = module._race(found, "seeds")
    failed = module._raced(found, open_search(ledger.files.root), race, "seeds", share=0.15, allowed=3)
    assert failed.race == RaceNote(share=0.15, allowed=3, trainings=3)
    told = next(one for one in failed.candidates if one.trial == lost)
    assert told.dropped is not None
    assert (told.values, told.dropped.reason, failed.chosen == lost) == ((None,), "out_of_memory", False)
    ends = ((300, Verdict("failed", "out_of_memory")), (900, Verdict("completed")), (900, Verdict("completed")))
    for number, (images, end) in enumerate(ends, 3):
        ledger.add(ledger.trials[0].parameters, repeats=lost)
        ledger.report(number, images, {"average_precision": 0.7}, 1.0, end=end)
    again = module._raced(found, open_search(ledger.files.root), race, "seeds", share=0.15, allowed=3)
    assert again.race == RaceNote(share=0.15, allowed=3, trainings=4)  # six in all, of which two were made good
    told = next(one for one in again.candidates if one.trial == lost)
    assert (told.values, told.dropped) == ((0.7, 0.7), None)
    assert again.images == failed.images + 2100, "what failed has cost its images"


def test_each_fold_is_held_out_once_before_any_twice(found: SearchResult, tmp_path: Path) -> None:
    ledger = ledger_of(found, tmp_path / "c")
    train = Trainings(ledger, true)
    Runner(module._race(found, "folds"), ledger, [0, 1], allowed=6, at_a_time=1).run(train)
    parts = [part for one in train.rounds for part in one]
    assert len(set(parts)) == len(parts)
    assert {fold for _, fold in parts} <= {0, 1}
    assert len(train.rounds[0]) == 2  # one alone tells little of a fold


def test_the_verb_races_by_default_and_with_top_all_train_equally(
    found: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of `confirm` but for Ray."""
    dataset = make_dataset(tmp_path / "data", patients=40)
    record = read_json(found.files.search)
    write_json(
        found.files.search,
        {**record, "dataset": str(dataset.files.root), "fingerprint": dataset.manifest.fingerprint},
    )
    asked: list[list[tuple[int | None, int | None]]] = []
    grows: list[bool] = []

    def run_listed(
        space: Any, data: Any, ledger: Ledger, slots: Slots, listed: Sequence[Listed], *, grow: bool, **_: Any
    ) -> None:
        assert space.rungs() == []
        grows.append(grow)
        assert ledger.record.wanted >= len(ledger.trials) + len(listed)
        train = Trainings(ledger, true)
        train(listed)
        asked.extend(train.rounds)

    monkeypatch.setattr(run, "run_listed", run_listed)
    monkeypatch.setattr(module, "connected", lambda _: nullcontext())
    monkeypatch.setattr(cluster_resources, "ClusterResources", lambda: SimpleNamespace(machines=list))
    monkeypatch.setattr(preflight, "plan_slots", lambda *_: Slots(1.0, 0.0, 2))
    monkeypatch.setattr(preflight, "check_machines", lambda *_: None)
    where = str(found.files.root)
    assert call(["confirm", where, "--seeds", "3", "--budget", "0.4"]) == 0
    # 0.4 of ten trials to 900 images and ten to 600 pay for six
    assert sum(map(len, asked)) <= 6
    assert max(map(len, asked)) == 2
    told = confirmed(found.files)
    assert told is not None
    assert told.race is not None
    assert (told.race.allowed, told.race.share, told.kind) == (6, 0.4, "seeds")
    assert worth(told.chosen / 25) > 0.79
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"chosen  trial {told.chosen}, by a race of {told.race.trainings} trainings (seeds)"
    assert lines[1].split() == ["trial", "selection", "mean", "spread", "n", "estimate", "best", "out", "after", "each"]
    assert chosen_trial(open_search(where)).number == told.chosen
    asked.clear()
    assert set(grows) == {True}
    grows.clear()
    assert call(["confirm", where, "--top", "2", "--seeds", "3", "--no-grow"]) == 0
    assert grows == [False]
    grid = confirmed(found.files)
    assert grid is not None
    assert (grid.race, [len(one.values) for one in grid.candidates]) == (None, [3, 3])
    assert call(["confirm", where, "--top", "2", "--budget", "0.2"]) == 2
    assert "--top, --budget: one of them must be given, got both" in capsys.readouterr().err
    assert call(["confirm", where, "--budget", "0"]) == 2
    assert "--budget: must be a share of the search's images above 0, got 0; 0.15 is usual" in capsys.readouterr().err
