from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from ich_ray.errors import IntegrityError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.ledger import Ledger, Verdict, trial_seed
from ich_ray.search.optuna_adapter import fitting, outcome
from ich_ray.search.space.constraints import Refusal
from ich_ray.search.space.feasible_draw import first_that_fits
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.tune.sampler import LedgerSampler
from ich_ray.trial_records import Report, TrialResult
from tests.records import make_record
from tests.search.fakes import SPACE

SOURCE = yaml.safe_load(SPACE)


def new(folder: Path, **keys: Any) -> Ledger:
    return Ledger.create(folder / "s", make_record(space=SOURCE | keys))


def sampler(ledger: Ledger, wanted: int = 9, concurrent: int = 2, **keys: Any) -> LedgerSampler:
    space = parse_space(ledger.record.space, "x.yaml")
    keys = {"out_of_time": lambda: False} | keys
    return LedgerSampler(space, ledger, wanted=wanted, concurrent=lambda: concurrent, **keys)


def end(ledger: Ledger, number: int, state: str, values: list[float]) -> None:
    for report, value in enumerate(values[:-1], 1):
        ledger.report(number, 100 * report, {"average_precision": value}, 1.0)
    ledger.report(number, 100 * len(values), {"average_precision": values[-1]}, 1.0, end=Verdict(state, "r"))  # type: ignore[arg-type]


def run_some(ledger: Ledger, suggest: LedgerSampler) -> None:
    """One trial completed, one pruned, one failed without a number, one failed without a report."""
    for number, (state, values) in enumerate(
        [("completed", [0.2, 0.5, 0.4]), ("pruned", [0.1, 0.3]), ("failed", [float("nan")])]
    ):
        suggest.suggest(f"t{number}")
        end(ledger, number, state, values)
        suggest.on_trial_complete(f"t{number}", {})
    suggest.suggest("t3")
    suggest.on_trial_complete("t3", error=True)


def test_a_resumed_search_draws_no_trial_twice(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    first = sampler(ledger)
    for number in range(2):
        first.suggest(f"t{number}")  # killed before any has ended
    again = sampler(ledger)
    for number in range(4):
        again.suggest(f"u{number}")
        if number < 2:
            end(ledger, number, "completed", [0.5])
            again.on_trial_complete(f"u{number}", {})
    drawn = [tuple(sorted(trial.parameters.items())) for trial in ledger.trials.values()]
    assert len(set(drawn)) == len(drawn) == 4


def test_what_it_was_told_is_compared_with_the_ledger(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    suggest = sampler(ledger)
    assert suggest.told() == 0
    run_some(ledger, suggest)
    assert suggest.told() == 4
    suggest.suggest("t4")
    end(ledger, 4, "completed", [0.6])
    assert suggest.told() == 3  # Optuna still has it running: one trial too few, and one too many
    suggest.on_trial_complete("t4", {})
    assert suggest.told() == 5
    again = sampler(ledger, warm=[list(ledger.trials.values())])
    assert again.told() == 5


def test_optuna_is_told_the_truth(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    suggest = sampler(ledger)
    run_some(ledger, suggest)
    told = suggest.known()
    assert [trial.state for trial in told] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert told[0].value == 0.5
    assert told[0].intermediate_values == {100: 0.2, 300: 0.5}  # the best so far at each of its rungs
    assert told[1].intermediate_values == {100: 0.1}  # of its rungs: 200 is none
    assert (ledger.trials[3].state, ledger.trials[3].reason) == ("failed", "worker_died")


def test_a_pruned_trial_is_known_by_what_it_had_at_its_rungs(tmp_path: Path) -> None:
    reports = [Report(images_seen=images, metrics={"average_precision": value}, elapsed_s=1.0, time=1.0)
               for images, value in ((100, 0.3), (200, 0.5), (300, None), (400, 0.4), (500, 0.6))]  # fmt: skip
    record = TrialResult(number=0, parameters={}, state="pruned", reason="rung_300", reports=tuple(reports))
    assert outcome(record, [100, 300]) == (TrialState.PRUNED, None, {100: 0.3, 300: 0.5})
    assert outcome(record, [900])[2] == outcome(record)[2] == {100: 0.3, 200: 0.5, 400: 0.4, 500: 0.6}


def test_a_running_trial_is_known_by_the_rungs_that_it_has_passed(tmp_path: Path) -> None:
    """What has passed a rung is better than most: to Optuna a running trial is a bad one."""
    ledger = new(tmp_path)
    suggest = sampler(ledger)
    suggest.suggest("a")
    suggest.suggest("b")
    states = []
    for images, value in ((50, 0.3), (100, 0.2), (200, 0.9), (300, 0.5)):
        suggest.on_trial_result("a", {"images_seen": images, "metrics/average_precision": value})
        ledger.report(0, images, {"average_precision": value}, 1.0)
        suggest.on_trial_result("a", {"images_seen": images, "metrics/average_precision": 1.0})  # by a second attempt
        states.append([trial.state for trial in suggest._shown.get_all_trials(0)])
    assert states == [[TrialState.RUNNING] * 2, *[[TrialState.PRUNED, TrialState.RUNNING]] * 3]
    assert suggest.known()[0].intermediate_values == {100: 0.3, 300: 0.9}
    assert suggest.known()[0].state == TrialState.RUNNING
    ledger.report(0, 900, {"average_precision": 0.95}, 1.0, end=Verdict("completed"))
    suggest.on_trial_complete("a", {})
    assert (suggest.known()[0].state, suggest.known()[0].value) == (TrialState.COMPLETE, 0.95)


LOSS = {"metric": "log_loss", "mode": "min"}


def test_of_a_loss_the_smallest_is_the_best(tmp_path: Path) -> None:
    ledger = new(tmp_path, objective=LOSS)
    suggest = sampler(ledger)
    suggest.suggest("a")
    for images, value in ((50, 0.2), (100, 0.4), (200, 0.1), (300, 0.3)):
        suggest.on_trial_result("a", {"images_seen": images, "metrics/log_loss": value})
        ledger.report(0, images, {"log_loss": value}, 1.0)
    assert suggest.known()[0].intermediate_values == {100: 0.2, 300: 0.1}
    record = ledger.trials[0].model_copy(update={"state": "pruned"})
    assert outcome(record, [100, 300]) == (TrialState.PRUNED, None, {100: 0.2, 300: 0.1})


def test_a_rebuilt_study_shows_the_same_of_many_trials(tmp_path: Path) -> None:
    """Trials end in another order than that of their numbers."""
    ledger = new(tmp_path)
    suggest = sampler(ledger, wanted=400, concurrent=400)
    for number in range(400):
        suggest.suggest(f"t{number}")
    for number in [*range(1, 400, 2), *range(0, 400, 2)]:
        end(ledger, number, "completed" if number % 3 else "pruned", [(number * 37 % 101) / 101])
        suggest.on_trial_complete(f"t{number}", {})
    again = sampler(Ledger.open(ledger.files.root))
    shown, rebuilt = ([one.number for one in made._shown.get_all_trials(0)] for made in (suggest, again))
    assert shown == rebuilt
    assert len(shown) == 250


def test_a_rebuilt_study_knows_the_same(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    suggest = sampler(ledger)
    run_some(ledger, suggest)
    again = sampler(Ledger.open(ledger.files.root)).known()
    for one, other in zip(suggest.known(), again, strict=True):
        assert (one.state, one.params, one.distributions) == (other.state, other.params, other.distributions)
        assert one.intermediate_values == other.intermediate_values
        if one.state == TrialState.COMPLETE:
            assert one.value == other.value


def test_slots_are_kept_and_the_end_is_told(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    suggest = sampler(ledger, wanted=3)
    assert [suggest.suggest(name) is None for name in ("a", "b", "c")] == [False, False, True]
    end(ledger, 0, "completed", [0.3])
    suggest.on_trial_complete("a", {})
    assert suggest.suggest("c")["number"] == 2
    end(ledger, 1, "pruned", [0.3])
    suggest.on_trial_complete("b", {})
    assert suggest.suggest("d") == "FINISHED"
    assert sorted(ledger.trials) == [0, 1, 2]


def test_nothing_is_suggested_after_its_time(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    for concurrent in (2, 0):  # also where no machine is left
        assert sampler(ledger, concurrent=concurrent, out_of_time=lambda: True).suggest("a") == "FINISHED"
    assert ledger.trials == {}


def test_unfinished_trials_come_first_with_number_seed_and_parameters(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    before = sampler(ledger)
    first, second = before.suggest("a"), before.suggest("b")
    ledger.report(1, 100, {"average_precision": 0.3}, 1.0)
    after = sampler(Ledger.open(ledger.files.root), concurrent=3)
    again = [after.suggest(name) for name in ("c", "d")]
    assert [one["parameters"] for one in again] == [first["parameters"], second["parameters"]]
    assert [one["seed"] for one in again] == [first["seed"], second["seed"]]
    assert [(one["number"], one["reported"], one["again"]) for one in again] == [(0, 0, True), (1, 100, True)]
    assert [trial.state for trial in after.known()] == [TrialState.RUNNING, TrialState.RUNNING]
    assert after.known()[1].intermediate_values == {100: 0.3}  # reached before the interruption
    assert after.suggest("e")["number"] == 2


def test_a_resumed_search_does_not_repeat_its_draws(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    for _ in range(4):
        suggest = sampler(Ledger.open(ledger.files.root))
        number = suggest.suggest("a")["number"]
        end(suggest._ledger, number, "completed", [0.3])
    drawn = [str(trial.parameters) for trial in Ledger.open(ledger.files.root).trials.values()]
    assert len(drawn) == len(set(drawn)) == 4


def test_no_more_trials_run_than_were_asked_for_where_shares_have_room(tmp_path: Path) -> None:
    shares = SimpleNamespace(has_room=lambda: True, begin=lambda _: {"gpus": 0.25})
    suggest = sampler(new(tmp_path), shares=shares)
    suggest.most = 1
    assert suggest.suggest("a")["gpus"] == 0.25
    assert suggest.suggest("b") is None
    suggest.most = None
    assert suggest.suggest("b")["gpus"] == 0.25


def test_points_come_before_draws(tmp_path: Path) -> None:
    point = {"architecture": "plain_cnn", "blocks": 3, "optimizer": "sgd", "learning_rate": 0.01, "dropout": 0.25}
    ledger = new(tmp_path, points=[point, {"architecture": "resnet18"}])
    suggest = sampler(ledger, concurrent=3)
    assert suggest.suggest("a")["parameters"] == point | {"momentum": 0.9}
    assert suggest.suggest("b")["parameters"]["architecture"] == "resnet18"
    assert suggest.suggest("c")["parameters"] != point | {"momentum": 0.9}


def test_the_same_seed_suggests_the_same(tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        ledger = new(tmp_path / name)
        suggest = sampler(ledger, wanted=20, concurrent=1)
        for number in range(15):
            suggest.suggest(str(number))
            end(ledger, number, "completed", [number / 20])
            suggest.on_trial_complete(str(number), {})
        drawn.append([trial.parameters for trial in ledger.trials.values()])
    assert drawn[0] == drawn[1]


def test_a_warm_start_keeps_what_fits(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    for number, rate in enumerate([1e-4, 1e-2]):
        ledger.add({"architecture": "resnet18", "learning_rate": rate, "dropout": 0.1, "optimizer": "adam"})
        end(ledger, number, "completed", [0.5 + number / 10])
    ledger.add({"architecture": "resnet18", "learning_rate": 1e-4, "dropout": 0.1, "optimizer": "adam"})
    narrow = SOURCE | {"parameters": SOURCE["parameters"] | {"learning_rate": {"loguniform": [1e-3, 1e-1]}}}
    kept = fitting(parse_space(narrow, "n.yaml"), ledger.trials.values())
    assert [trial.number for trial in kept] == [1]
    known = sampler(new(tmp_path / "other", **narrow), warm=[kept]).known()
    assert [(trial.state, trial.value) for trial in known] == [(TrialState.COMPLETE, 0.6)]


def test_of_its_first_trials_every_second_asks_no_teacher(tmp_path: Path) -> None:
    taught = new(tmp_path / "taught")
    for number in range(12):
        taught.add({"architecture": "resnet18", "learning_rate": 1e-3, "dropout": 0.1, "optimizer": "sgd"})
        end(taught, number, "completed", [0.5])
    ledger = new(tmp_path)
    suggest = sampler(ledger, wanted=24, concurrent=24, warm=[list(taught.trials.values())])
    for number in range(24):
        suggest.suggest(str(number))
    space = parse_space(ledger.record.space, "x.yaml")
    at_random = [space.draw(RandomSuggest(trial_seed(ledger.record.seed, number))).parameters for number in range(24)]
    alike = [number for number in range(24) if ledger.trials[number].parameters == at_random[number]]
    assert alike == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]


def test_a_parameter_that_is_new_here_counts_by_its_default(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    ledger.add({"architecture": "resnet18", "learning_rate": 1e-3, "dropout": 0.1, "optimizer": "adam"})
    end(ledger, 0, "completed", [0.5])
    wider = SOURCE | {"parameters": SOURCE["parameters"] | {"batch_size": {"choice": [32, 64]}}}
    other = SOURCE | {"parameters": SOURCE["parameters"] | {"batch_size": {"choice": [32, 128]}}}
    assert len(fitting(parse_space(wider, "w.yaml"), ledger.trials.values())) == 1
    assert fitting(parse_space(other, "o.yaml"), ledger.trials.values()) == []


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        ({"foo": 1}, "foo=1"),
        ({"learning_rate": 0.5}, "learning_rate=0.5"),
        ({"batch_size": 128}, "batch_size=128"),
        ({"momentum": 0.5, "optimizer": "sgd"}, "momentum=0.5"),
    ],
)
def test_a_trial_that_the_space_cannot_draw_is_left_out_of_a_warm_start_and_named_in_its_own_search(
    tmp_path: Path, odd: dict[str, Any], named: str
) -> None:
    ledger = new(tmp_path)
    for more in ({}, odd):
        ledger.add({"architecture": "resnet18", "learning_rate": 1e-3, "dropout": 0.1, "optimizer": "adam", **more})
        end(ledger, len(ledger.trials) - 1, "completed", [0.5])
    space = parse_space(ledger.record.space, "x.yaml")
    assert [trial.number for trial in fitting(space, ledger.trials.values())] == [0]
    with pytest.raises(IntegrityError) as caught:
        sampler(ledger)
    assert str(caught.value) == (
        f"trials/00001.json: its parameters must be drawn from the space tiny, got {named}; restore the file from a "
        "copy, or begin a new search with --warm-start on this one, which leaves such trials out"
    )


def test_the_first_draws_come_from_what_is_believed_and_a_resumed_search_repeats_them(tmp_path: Path) -> None:
    believing = {
        "learning_rate": {"loguniform": [1e-5, 1e-1], "prior": 1e-3, "width": 0.2},
        "optimizer": {"choice": ["sgd", "adam"], "prior": "adam", "weight": 0.99},
    }
    source = {"parameters": SOURCE["parameters"] | believing}
    ledger = new(tmp_path, **source)
    first = sampler(ledger)
    for number in range(2):
        first.suggest(f"t{number}")
    again = sampler(ledger)
    for number in range(2):
        again.suggest(f"u{number}")
        end(ledger, number, "completed", [0.5])
        again.on_trial_complete(f"u{number}", {})
    again.suggest("u2")
    whole = new(tmp_path / "whole", **source)
    suggest = sampler(whole, concurrent=9)
    for number in range(3):
        suggest.suggest(str(number))
    believed = [[trial.parameters[name] for name in believing] for trial in ledger.trials.values()]
    assert all(5e-4 < float(rate) < 2e-3 and optimizer == "adam" for rate, optimizer in believed)
    assert believed == [[trial.parameters[name] for name in believing] for trial in whole.trials.values()]


def test_a_point_counts_more_than_what_is_believed(tmp_path: Path) -> None:
    rate = {"loguniform": [1e-5, 1e-1], "prior": 1e-3, "width": 0.2}
    ledger = new(tmp_path, parameters=SOURCE["parameters"] | {"learning_rate": rate}, points=[{"learning_rate": 0.05}])
    sampler(ledger).suggest("t0")
    assert ledger.trials[0].parameters["learning_rate"] == 0.05


def test_a_draw_that_is_refused_is_no_trial(tmp_path: Path) -> None:
    refused: list[str] = []

    def refuses(parameters: Hyperparameters) -> Refusal | None:
        if parameters.architecture == "plain_cnn":
            return None
        refused.append(parameters.architecture)
        return Refusal("max_parameters", 0.5)

    ledger = new(tmp_path)
    suggest = sampler(ledger, wanted=30, refuses=refuses)
    for number in range(30):
        suggest.suggest(str(number))
        end(ledger, number, "completed", [number / 50])
        suggest.on_trial_complete(str(number), {})
    assert {trial.parameters["architecture"] for trial in ledger.trials.values()} == {"plain_cnn"}
    assert (len(ledger.trials), suggest.told(), len(suggest.known())) == (30, 30, 30 + len(refused))
    assert 5 < len(refused) < 30
    assert suggest.suggest("31") == "FINISHED"


def test_where_nearly_nothing_fits_a_draw_is_looked_for_at_random(tmp_path: Path) -> None:
    asked: list[Hyperparameters] = []

    def refuses(parameters: Hyperparameters) -> Refusal | None:
        asked.append(parameters)
        return None if len(asked) > 60 else Refusal("max_gpu_gb", 1.0)

    ledger = new(tmp_path)
    suggest = sampler(ledger, refuses=refuses)
    suggest.suggest("t0")
    assert Hyperparameters.model_validate(ledger.trials[0].parameters) == asked[60]
    assert (len(asked), len(suggest.known())) == (61, 51)


def test_a_search_goes_on_with_the_draw_of_its_beginning_where_no_other_is_found(tmp_path: Path) -> None:
    ledger = new(tmp_path)
    space = parse_space(ledger.record.space, "x.yaml")
    known = first_that_fits(space, lambda _: None, ledger.record.seed)

    def refuses(parameters: Hyperparameters) -> Refusal | None:
        return None if parameters.is_same(known) else Refusal("max_gpu_gb", 1.0)

    suggest = sampler(ledger, refuses=refuses)
    for number in range(2):
        suggest.suggest(f"t{number}")
    assert [trial.parameters for trial in ledger.trials.values()] == [known, known]


def test_a_single_teacher_is_weighed(tmp_path: Path) -> None:
    teacher = new(tmp_path / "teacher")
    run_some(teacher, sampler(teacher))
    suggest = sampler(new(tmp_path), warm=[list(teacher.trials.values())])
    assert (len(suggest.known()), suggest.told()) == (4, 0)
    assert suggest._shown.trust == [1.0]


def test_tune_state_is_never_restored(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        sampler(new(tmp_path)).restore("x")
