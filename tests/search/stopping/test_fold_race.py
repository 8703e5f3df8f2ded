from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from ich_ray.search.space.space import Budget
from ich_ray.search.stopping.fold_race import FoldRace
from ich_ray.trial_records import FoldNote, LogitsReference, Objective, Report, TrialResult

BUDGET = Budget(images=200, report_every=100, first_rung=100)
OBJECTIVE = Objective(folds=3)


def note(number: int, fold: int, images: int) -> FoldNote:
    logits = LogitsReference(file=f"logits/{number}/{fold}-{images}", sha256="0" * 64)
    return FoldNote(number=fold, images_seen=images, whole=images == 200, value=0.5, logits=logits)


class Asked:
    """A test that answers `chance`, and what it was asked."""

    def __init__(self, chance: float | None) -> None:
        self.chance, self.pairs = chance, list[tuple[list[str], list[str]]]()

    def __call__(self, one: Sequence[LogitsReference], other: Sequence[LogitsReference]) -> float | None:
        names = [[reference.file.removeprefix("logits/") for reference in said] for said in (one, other)]
        self.pairs.append((names[0], names[1]))
        return self.chance


def tell(race: FoldRace, number: int, fold: int, *values: float) -> str | None:
    """The reports of one fold; what the last one is answered."""
    answers = [
        race.offer(number, fold * 200 + images, value, note(number, fold, images))
        for images, value in zip((100, 200), values, strict=True)
    ]
    assert answers[0] is None
    return answers[1]


@pytest.mark.parametrize(("chance", "reason"), [(0.04, "folds_1"), (0.06, None), (None, None)])
def test_a_trial_ends_that_has_less_than_a_chance_in_twenty(chance: float | None, reason: str | None) -> None:
    asked = Asked(chance)
    race = FoldRace(BUDGET, OBJECTIVE, asked)
    assert tell(race, 0, 0, 0.5, 0.7) is None  # nobody is there yet
    assert tell(race, 1, 0, 0.6, 0.5) == reason
    assert asked.pairs == [(["1/0-100"], ["0/0-200"])]  # each at the images where it is best


def test_folds_are_compared_that_both_have_done() -> None:
    asked = Asked(0.5)
    race = FoldRace(BUDGET, OBJECTIVE, asked)
    tell(race, 0, 0, 0.1, 0.5)
    race.offer(0, 300, 0.9, note(0, 1, 100))  # its second fold has begun
    tell(race, 1, 0, 0.1, 0.4)
    assert asked.pairs == [(["1/0-200"], ["0/0-200"])]
    assert tell(race, 1, 1, 0.4, 0.3) is None  # the same pair on the same folds
    assert len(asked.pairs) == 1
    race.offer(0, 400, 0.8, note(0, 1, 200))
    tell(race, 2, 0, 0.1, 0.3)
    asked.chance = 0.0
    race.offer(2, 300, 0.1, note(2, 1, 100))
    assert race.offer(2, 400, 0.2, note(2, 1, 200)) == "folds_2"
    assert asked.pairs[-1] == (["2/0-200", "2/1-200"], ["0/0-100", "0/1-100"])
    assert race.reached == {200: {0: 0.5, 1: 0.4, 2: 0.3}, 400: {0: 0.9, 1: 0.4, 2: 0.2}}


def test_a_trial_is_compared_again_when_a_better_one_has_come_as_far() -> None:
    asked = Asked(0.5)
    race = FoldRace(BUDGET, OBJECTIVE, asked)
    tell(race, 0, 0, 0.1, 0.5)
    tell(race, 1, 0, 0.1, 0.4)
    assert race.offer(0, 300, 0.3, note(0, 1, 100)) is None
    assert asked.pairs == [(["1/0-200"], ["0/0-200"])]  # who leads is compared with nobody
    assert race.offer(1, 300, 0.3, note(1, 1, 100)) is None  # nothing has changed
    assert len(asked.pairs) == 1
    tell(race, 2, 0, 0.1, 0.9)
    asked.chance = 0.01
    assert race.offer(1, 300, 0.3, note(1, 1, 100)) == "folds_1"
    assert asked.pairs[-1] == (["1/0-200"], ["2/0-200"])


def test_the_last_fold_ends_by_itself() -> None:
    asked = Asked(0.0)
    race = FoldRace(BUDGET, OBJECTIVE, asked)
    for number in (0, 1):
        assert tell(race, number, 2, 0.5, 0.5) is None
    assert asked.pairs == []


def test_a_failed_trial_beats_nobody() -> None:
    race = FoldRace(BUDGET, OBJECTIVE, Asked(0.0))
    tell(race, 0, 0, 0.9, 0.9)
    race.failed(0)
    assert tell(race, 1, 0, 0.1, 0.1) is None


def test_without_rungs_the_race_is_run_all_the_same() -> None:
    race = FoldRace(BUDGET.model_copy(update={"first_rung": 200}), OBJECTIVE, Asked(0.0))
    tell(race, 0, 0, 0.9, 0.9)
    assert tell(race, 1, 0, 0.1, 0.1) == "folds_1"


def test_a_report_of_another_fold_than_its_images_tells_nothing() -> None:
    asked = Asked(0.0)
    race = FoldRace(BUDGET, OBJECTIVE, asked)
    tell(race, 0, 0, 0.9, 0.9)
    assert race.offer(1, 200, 0.1, note(1, 1, 200)) is None
    assert race.offer(1, 800, 0.1, note(1, 3, 200)) is None  # of three folds
    assert race.reached == {200: {0: 0.9}, 400: {}}
    with pytest.raises(ValidationError, match="less than 10000"):
        note(1, 10**12, 100)


def test_without_the_report_of_an_earlier_fold_nothing_is_concluded() -> None:
    asked = Asked(0.0)
    race = FoldRace(BUDGET, OBJECTIVE, asked)
    tell(race, 0, 0, 0.9, 0.9)
    tell(race, 0, 1, 0.9, 0.9)
    assert race.offer(1, 400, 0.1, note(1, 1, 200)) is None
    assert asked.pairs == []


@pytest.mark.parametrize(("mode", "leader"), [("max", "1"), ("min", "0")])
def test_it_is_rebuilt_from_the_ledger_without_judging_again(mode: str, leader: str) -> None:
    objective = Objective(metric="log_loss" if mode == "min" else "roc_auc", mode=mode, folds=3)  # type: ignore[arg-type]

    def trial(number: int, value: float, state: str = "running") -> TrialResult:
        reports = tuple(
            Report(
                images_seen=images, metrics={objective.metric: value}, elapsed_s=1, time=1, fold=note(number, 0, images)
            )
            for images in (100, 200)
        )
        return TrialResult(number=number, parameters={}, reports=reports, state=state)  # type: ignore[arg-type]

    asked = Asked(0.01)
    trials = [trial(0, 0.5), trial(1, 0.6), trial(2, 0.9 if mode == "max" else 0.1, "failed")]
    race = FoldRace.rebuilt(BUDGET, objective, asked, trials)
    assert asked.pairs == []
    assert tell(race, 3, 0, 0.55, 0.55) == "folds_1"
    assert asked.pairs == [(["3/0-100"], [f"{leader}/0-100"])]
