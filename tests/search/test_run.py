from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.refit.confirm import confirm
from ich_ray.refit.retrain import chosen_trial
from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search import checked_request, early_end, ledger, run, time_budget
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.plan import cost_model
from ich_ray.search.plan.plan_report import plan_search
from ich_ray.search.run import run_search
from ich_ray.search.space.space import SearchSpace
from ich_ray.search.trial_output import read_output
from ich_ray.search.tune import ledger_callback, measure_speed
from ich_ray.search.tune.sampler import LedgerSampler
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.storage import SearchFiles, file_lock, locate, read_json, write_bytes, write_json
from tests.prepared import make_dataset
from tests.records import make_record
from tests.search.fakes import SPACE, FakeTrainer
from tests.search.tune import tune_stand_in

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "data"
    make_dataset(folder, patients=20)
    return folder


@pytest.fixture(scope="module", autouse=True)
def ray_on_two_slots() -> Iterator[None]:
    with connected(cpus=2):
        yield


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.mark.parametrize("there", [True, False])
def test_a_dataset_without_its_table_costs_no_trial(there: bool, data: Path, space: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    if there:
        manifest = json.loads((data / "dataset.json").read_text())
        (tmp_path / "data" / "dataset.json").write_text(json.dumps({**manifest, "slices_sha256": "0" * 64}))
    else:
        (tmp_path / "data" / "slices.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"slices\.parquet: .* prepare the dataset again"):
        run_search(tmp_path / "data", space, tmp_path / "s", trials=1, _trainer=FakeTrainer())
    assert not (tmp_path / "s").exists()


def check_invariants(found: SearchResult, trials: int) -> None:
    """A search that has ended: as the audit sees it, and once more by other means."""
    ended = audit(found.files.root)
    assert (ended.state, ended.breached) == ("ended", ())
    assert [trial.number for trial in found.trials] == list(range(trials))
    assert Counter(trial.state for trial in found.trials).keys() <= {"completed", "pruned", "failed"}
    for trial in found.trials:
        seen = [report.images_seen for report in trial.reports]
        assert seen == list(range(100, 100 * len(seen) + 1, 100)), trial.number
        assert trial.ended is not None
        assert trial.checkpoint is None
        if trial.state == "completed":
            assert trial.images_seen == 900
    completed = [trial for trial in found.trials if trial.state == "completed"]
    if completed:
        offline = max(completed, key=lambda t: max(r.metrics["average_precision"] or 0 for r in t.reports))
        assert found.best().number == offline.number


@pytest.fixture(scope="module")
def finished(data: Path) -> tuple[SearchResult, list[Counter[str]]]:
    """A search of 16 trials, and the states that the ledger showed each time it said something."""
    path, out, both = data.parent / "space.yaml", data.parent / "s", data.parent / "both"
    path.write_text(SPACE + "points: [{learning_rate: 0.05}]\n")
    both.mkdir()
    seen: list[Counter[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ledger_callback, "say", lambda _: seen.append(Counter(trial.state for trial in open_search(out).trials))
        )
        trainer = FakeTrainer(diverge_above=0.02, meet=str(both))  # a late worker would find nothing left to do
        return run_search(data, path, out, trials=16, _trainer=trainer), seen


@pytest.fixture
def copied(finished: tuple[SearchResult, Any], space: Path, tmp_path: Path) -> Path:
    """The finished search in a folder of the test's own."""
    shutil.copytree(str(finished[0].files.root), tmp_path / "s")
    space.write_text(SPACE + "points: [{learning_rate: 0.05}]\n")
    return tmp_path / "s"


def test_a_search_ends_with_every_trial_in_one_state(finished: tuple[SearchResult, Any]) -> None:
    found = finished[0]
    check_invariants(found, 16)
    states = Counter(trial.state for trial in found.trials)
    assert states["completed"] >= 2
    assert states["pruned"] >= 3
    assert {trial.reason for trial in found.trials if trial.state == "pruned"} <= {"rung_100", "rung_300"}
    assert found.trials[0].parameters["learning_rate"] == 0.05
    failed = found.trials[0]
    assert (failed.state, failed.reason, failed.detail) == ("failed", "diverged", "loss is nan at 100 images")
    assert len({trial.where for trial in found.trials}) == 2  # both slots, and workers reused
    root = Path(str(found.files.root))
    assert {path.name for path in root.iterdir()} <= {"search.json", "trials", "checkpoints", ".lock"}
    assert list((root / "checkpoints").iterdir()) == []
    assert (found.record.name, found.record.trials, found.record.seed) == ("tiny", 16, 0)


def test_results_can_be_read_while_it_runs(finished: tuple[Any, list[Counter[str]]]) -> None:
    seen = finished[1]
    assert len(seen) >= 16
    assert all(counts["running"] <= 2 for counts in seen)
    assert any(counts["running"] for counts in seen)


def test_a_search_is_extended_without_touching_what_is_done(data: Path, space: Path, copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in (copied / "trials").iterdir()}
    found = run_search(data, space, copied, trials=19, resume=True, _trainer=FakeTrainer())
    check_invariants(found, 19)
    assert found.record.wanted == 19
    for name, content in before.items():
        assert (copied / "trials" / name).read_bytes() == content


def test_its_best_trials_are_confirmed_on_folds(copied: Path) -> None:
    best = open_search(copied).ranked()[:2]
    confirmation = confirm(copied, top=2, folds=2, _trainer=FakeTrainer())
    trainings = open_search(SearchFiles(locate(copied)).confirming("folds").root)
    check_invariants(trainings, 4)
    told = [(trial.repeats, trial.fold) for trial in trainings.trials]
    assert told == [(best[0].number, 0), (best[1].number, 0), (best[0].number, 1), (best[1].number, 1)]
    assert trainings.trials[3].parameters == best[1].parameters
    assert [candidate.values for candidate in confirmation.candidates] == [(trial.value,) * 2 for trial in best]
    assert chosen_trial(open_search(copied)).number == confirmation.chosen == best[0].number
    assert (audit(trainings.files.root).state, audit(trainings.files.root).breached) == ("ended", ())


def test_a_finished_search_stays_as_it_is(data: Path, space: Path, copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*.json")}
    assert len(run_search(data, space, copied, resume=True).trials) == 16
    with pytest.raises(ConfigError, match="got this very search; add --resume to go on with it"):
        run_search(data, space, copied, trials=20)
    with pytest.raises(ConfigError, match="may only be raised for a search that was begun, got 2 where it has 16"):
        run_search(data, space, copied, trials=2, resume=True)
    space.write_text(space.read_text().replace("[1.0e-5, 1.0e-1]", "[1.0e-4, 1.0e-1]"))
    change = r"parameters.learning_rate.loguniform: there \[1e-05, 0.1\], asked \[0.0001, 0.1\]"
    with pytest.raises(ConfigError, match=f"got another search \\({change}\\); choose another --out"):
        run_search(data, space, copied, trials=1)
    with pytest.raises(ConfigError, match=f"--resume goes on with the same search, got another one \\({change}\\)"):
        run_search(data, space, copied, resume=True)
    with pytest.raises(ConfigError, match=r"seed: there 0, asked 3"):
        run_search(data, space, copied, resume=True, seed=3)
    assert {path: path.read_bytes() for path in copied.rglob("*.json")} == before


def test_the_end_compares_ledger_sampler_and_tune(data: Path, space: Path, copied: Path) -> None:
    ended = open_search(copied).record.ended
    assert ended is not None
    assert ended.model_dump() == {"trials": 16, "asked": 16, "sampler": 16, "tune": 16, "out_of_time": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LedgerSampler, "told", lambda _: 15)
        with pytest.raises(IntegrityError, match="must know the same trials, got 16, 15 and 16; add --resume"):
            run_search(data, space, copied, resume=True)
    breach = "search.json: 16 trials had ended, got 15 with the sampler and 16 with Tune"
    assert [check.breaches for check in audit(copied).breached] == [(breach,)]
    run_search(data, space, copied, resume=True)
    assert audit(copied).breached == ()


def test_a_dead_worker_is_started_again_from_its_checkpoint(data: Path, space: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    space.write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    found = run_search(data, space, tmp_path / "s", trials=2, _trainer=FakeTrainer(kill_once=str(trap)))
    check_invariants(found, 2)
    assert not trap.exists()
    assert sorted(trial.attempts for trial in found.trials) == [1, 2]
    assert [trial.state for trial in found.trials] == ["completed", "completed"]
    (lost,) = [trial.number for trial in found.trials if trial.attempts == 2]
    log, until = Path(str(found.files.lost_log(lost))), time.monotonic() + 120  # kept by a task that nobody waits for
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert "its last words" in read_output(found.files.lost_log(lost))


def test_trials_that_raise_or_report_nan_do_not_end_the_search(data: Path, space: Path, tmp_path: Path) -> None:
    space.write_text(SPACE + "points: [{learning_rate: 0.09}]\n")
    trainer = FakeTrainer(full_above=0.08, raise_above=1e-2, nan_above=1e-3)
    found = run_search(data, space, tmp_path / "s", trials=12, _trainer=trainer)
    check_invariants(found, 12)
    reasons = {trial.reason: trial for trial in found.trials if trial.state == "failed"}
    assert set(reasons) == {"error", "diverged", "out_of_memory"}
    full = found.trials[0]
    assert (full.reason, full.attempts) == ("out_of_memory", 1)
    assert full.detail == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert reasons["error"].detail == "ValueError: planted"
    assert reasons["diverged"].detail == "average_precision is not finite at 100 images"
    assert reasons["diverged"].reports[0].metrics["average_precision"] is None
    assert all(trial.value is not None for trial in found.trials if trial.state != "failed")
    said = read_output(found.files.log(reasons["error"].number))
    assert said[1].startswith("# ")
    assert said[1].endswith(", where the error came from")
    assert said[-1] == "ValueError: planted"
    assert any("fakes.py" in line for line in said)
    assert read_output(found.files.log(reasons["diverged"].number)) == []


def test_time_that_is_over_ends_it_cleanly(
    data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_search(data, space, tmp_path / "s", trials=500, hours=1e-9, _trainer=FakeTrainer())
    assert found.trials == ()
    both = tmp_path / "both"
    both.mkdir()

    def clock() -> float:
        """An hour is over as soon as both trials have begun; neither has reported by then."""
        return time.time() + (3600 if len([*both.iterdir()]) == 2 else 0)

    monkeypatch.setattr(time_budget, "time", SimpleNamespace(time=clock))
    found = run_search(data, space, tmp_path / "s", hours=1, resume=True, _trainer=FakeTrainer(meet=str(both)))
    check_invariants(found, 2)
    assert [(trial.state, trial.reason, trial.images_seen) for trial in found.trials] == [("pruned", "hours", 100)] * 2


def test_a_search_whose_time_is_over_leaves_nothing_unfinished(data: Path, space: Path, copied: Path) -> None:
    ledger = Ledger.open(copied)
    ledger.amend(trials=18)
    for number, value in ((16, 0.3), (17, None)):
        ledger.add({"architecture": "resnet18", "learning_rate": 1e-3, "dropout": 0.1, "optimizer": "adam"})
        if value:
            ledger.report(number, 100, {"average_precision": value}, 1.0)
    found = run_search(data, space, copied, hours=1e-9, resume=True)
    assert [(trial.state, trial.reason) for trial in found.trials[16:]] == [("pruned", "hours")] * 2


def test_a_resumed_search_keeps_its_seed(data: Path, space: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"hours": 1e-9, "_trainer": FakeTrainer()}  # over before anything trains
    assert run_search(data, space, tmp_path / "s", trials=3, seed=7, **keys).record.seed == 7
    found = run_search(data, space, tmp_path / "s", resume=True, **keys)
    assert (found.record.seed, found.record.wanted) == (7, 3)
    run_search(data, space, tmp_path / "s", resume=True, seed=7, **keys)
    with pytest.raises(ConfigError, match="got another one \\(seed: there 7, asked 0\\)"):
        run_search(data, space, tmp_path / "s", resume=True, seed=0, **keys)
    with pytest.raises(ConfigError, match="got this very search; add --resume"):
        run_search(data, space, tmp_path / "s")


def test_the_same_seed_on_one_slot_writes_the_same_ledger(data: Path, space: Path, tmp_path: Path) -> None:
    ledgers = []
    for name in ("one", "two"):
        found = run_search(data, space, tmp_path / name, trials=6, concurrent=1, seed=5, _trainer=FakeTrainer())
        ledgers.append([forget_times(trial.model_dump()) for trial in found.trials])
    assert ledgers[0] == ledgers[1]


def forget_times(trial: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in trial.items() if key not in {"started", "ended", "where", "cost_gpu_s"}}
    return kept | {"reports": [{**report, "time": 0, "usage": None} for report in trial["reports"]]}


@pytest.fixture
def full_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the disk be full from a write of a trial on; with infinity it has room again."""
    left = [math.inf]

    def write(path: Any, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_bytes(path, content)

    monkeypatch.setattr(ledger, "write_bytes", write)
    return lambda writes: left.__setitem__(0, writes)


def check_full_disk(error: IchRayError, out: Path) -> None:
    assert type(error) is IchRayError
    assert str(error).startswith(f"{out}: a search needs its cluster and room for its files, got {out}/trials/0000")
    assert str(error).endswith(
        ".json: No space left on device; remove the cause and add --resume to go on, nothing is lost"
    )
    assert "\n" not in str(error)
    assert len(open_search(out).trials) <= 6


@pytest.mark.parametrize("writes", range(30))
def test_a_full_disk_stops_it_with_the_cause_at_each_write(
    writes: int,
    full_from: Callable[[float], None],
    data: Path,
    space: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.tune.run", tune_stand_in.run)
    full_from(writes)
    with pytest.raises(IchRayError) as caught:
        run_search(data, space, tmp_path / "s", trials=6, _trainer=FakeTrainer())
    check_full_disk(caught.value, tmp_path / "s")
    full_from(math.inf)
    check_invariants(run_search(data, space, tmp_path / "s", resume=True, _trainer=FakeTrainer()), 6)


# 0 and 7: a new trial, the first and one beside another that runs; others: a start, reports and ends.
@pytest.mark.parametrize(
    "writes", [0, 12, *(pytest.param(writes, marks=pytest.mark.slow) for writes in (1, 3, 7, 9, 17, 24))]
)
def test_a_full_disk_stops_tune_with_the_cause(
    writes: int, full_from: Callable[[float], None], data: Path, space: Path, tmp_path: Path
) -> None:
    full_from(writes)
    with pytest.raises(IchRayError) as caught:
        run_search(data, space, tmp_path / "s", trials=6, _trainer=FakeTrainer())
    check_full_disk(caught.value, tmp_path / "s")


@pytest.mark.parametrize(
    ("keys", "reason", "told"),
    [
        ({"target": 0.3}, "target", "the search's --target was reached: trial "),
        ({"patience": "8 trials"}, "patience", "the search's --patience was over: the last 8 trials brought "),
    ],
)
def test_a_search_that_has_found_enough_ends_and_says_what_it_saved(
    keys: Any, reason: str, told: str, data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ray.tune.run", tune_stand_in.run)
    monkeypatch.setattr("ich_ray.search.tune.driver.say", said.append)
    monkeypatch.setattr(early_end, "_SHARE_OF_TIME", math.inf)
    found = run_search(data, space, tmp_path / "s", trials=300, **keys, _trainer=FakeTrainer())
    assert 10 <= len(found.trials) < 300
    assert audit(found.files.root).breached == ()
    assert found.record.ended
    assert found.record.ended.out_of_time
    assert {trial.reason for trial in found.trials} - {"", "rung_100", "rung_300"} <= {reason}
    each = sum(trial.images_seen for trial in found.trials) / len(found.trials)
    left = 300 - len(found.trials)
    last = next(line for line in said if told in line)
    assert last.endswith(f"; {left} trials not begun, about {left * each:,.0f} images saved")


@pytest.mark.parametrize("error", [IntegrityError("a: b, got c"), KeyError("of ours")])
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (LedgerSampler, "suggest"),
        (LedgerSampler, "on_trial_result"),
        (LedgerSampler, "on_trial_complete"),
        (StoppingScheduler, "on_trial_result"),
        (ledger_callback.LedgerCallback, "on_trial_start"),
        (ledger_callback.LedgerCallback, "on_trial_result"),
        (ledger_callback.LedgerCallback, "on_trial_complete"),
        (ledger_callback.LedgerCallback, "on_step_end"),
    ],
)
def test_another_error_of_ours_leaves_tune_as_it_was_raised(
    kind: type, call: str, error: Exception, data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ray.tune.run", tune_stand_in.run)
    monkeypatch.setattr(kind, call, fail)
    with pytest.raises(type(error)) as caught:
        run_search(data, space, tmp_path / "s", trials=3)
    assert caught.value is error


@pytest.mark.slow
def test_a_full_disk_under_a_checkpoint_fails_no_trial(data: Path, space: Path, tmp_path: Path) -> None:
    space.write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    with pytest.raises(IchRayError, match=r"got .*checkpoints/0000[01]: No space left on device; remove the cause"):
        run_search(data, space, tmp_path / "s", trials=2, _trainer=FakeTrainer(full_from=300))
    before = open_search(tmp_path / "s")
    assert before.count("running") == len(before.trials)
    assert max(trial.images_seen for trial in before.trials) == 300, "its report came before its state"
    found = run_search(data, space, tmp_path / "s", resume=True, _trainer=FakeTrainer())
    check_invariants(found, 2)
    assert found.count("completed") == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gpus_per_trial": 4}, "--gpus-per-trial: a trial must fit on one machine, got 4 where the largest has 0"),
        ({"cpus_per_trial": 64}, "--cpus-per-trial: a trial must fit on one machine, got 64 where the largest has 2"),
        ({"seed": -1}, "--seed: must be at least 0, got -1"),
        ({"trials": 0}, "--trials: must be at least 1, got 0"),
        ({"hours": -1}, "--hours: must be above 0, got -1"),
        ({"gpu_hours": 2}, "--gpu-hours: has a meaning only where trials hold GPUs, got 0 GPU a trial; use --hours"),
        ({"concurrent": 0}, "--concurrent: must be at least 1, got 0"),
        ({"dataset": "nowhere"}, "nowhere: a prepared dataset holds dataset.json, got none"),
        ({"warm_start": "nowhere"}, "nowhere: a search holds search.json, got none"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    data: Path, space: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        run_search(**({"dataset": data, "space": space, "out": tmp_path / "s"} | keys))
    assert message in str(caught.value)
    assert time.monotonic() - started < 5
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ("first_rung: 100", "first_rung: 1000"),
            "space.yaml: budget.first_rung: first_rung <= images must hold, got first_rung=1000, images=900; "
            "lower first_rung or raise images",
        ),
        (
            ("[0.0, 0.6]", "[0.6, 0.0]"),
            "space.yaml: dropout: low < high must hold, got low=0.6, high=0.0; swap them, or use fixed for one value",
        ),
    ],
)
def test_a_space_that_cannot_be_drawn_is_refused_before_anything_is_written(
    data: Path, space: Path, tmp_path: Path, wrong: tuple[str, str], message: str
) -> None:
    space.write_text(SPACE.replace(*wrong))
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        run_search(data, space, tmp_path / "s")
    assert str(caught.value) == message
    assert time.monotonic() - started < 5
    assert not (tmp_path / "s").exists()


def test_two_drivers_never_share_a_search(data: Path, space: Path, tmp_path: Path) -> None:
    with (
        file_lock(SearchFiles(locate(tmp_path / "s")).lock, "a search"),
        pytest.raises(ConfigError, match="one process at a time may write a search, another one is at work"),
    ):
        run_search(data, space, tmp_path / "s", trials=1)


def test_the_next_ctrl_c_after_a_search_is_not_lost(data: Path, space: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_search(data, space, tmp_path / "s", trials=1, _trainer=FakeTrainer())
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_driver_that_is_refused_leaves_the_other_one_its_lock(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path / "s"))
    with run.locked(files):  # before it has a search.json
        for _ in range(2):
            with pytest.raises(ConfigError, match="another one is at work"), run.locked(files):
                raise AssertionError
    assert not files.root.exists()


def test_a_listed_trial_whose_file_was_lost_runs_again(tmp_path: Path, data: Path, space: Path) -> None:
    space.write_text(
        "{name: listed, sampler: grid, budget: {images: 900, report_every: 100, first_rung: 900}, "
        "parameters: {learning_rate: 0.001, dropout: {choice: [0.1, 0.2, 0.3, 0.4]}}}"
    )
    begun = run_search(data, space, tmp_path / "s", _trainer=FakeTrainer())
    draws = [trial.parameters["dropout"] for trial in begun.trials]
    begun.files.trial(1).unlink()
    found = run_search(data, space, tmp_path / "s", resume=True, _trainer=FakeTrainer())
    assert [trial.parameters["dropout"] for trial in found.trials] == draws
    check_invariants(found, 4)


def test_a_dataset_that_was_moved_is_known_from_then_on(data: Path, space: Path, copied: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "moved")
    found = run_search(tmp_path / "moved", space, copied, resume=True, _trainer=FakeTrainer())
    assert found.record.dataset_folder == str(tmp_path / "moved")
    assert confirm(copied, top=1, folds=2, _trainer=FakeTrainer()).parts == 2


def test_a_plan_says_what_would_happen_and_writes_nothing(
    data: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_COUNT_S", "_MEASURE_S", "_MEASURE_EACH_S"):
        monkeypatch.setattr(cost_model, name, 0)
    space.write_text(SPACE + "points: [{architecture: plain_cnn, blocks: 1}]\n")
    typed = ["search", str(data), "--space", str(space), "--out", str(tmp_path / "s"), "--trials", "27", "--plan"]
    assert call(typed) == 0
    printed = capsys.readouterr().out
    assert "search tiny: 27 trials, 2 at a time, each on 1 CPU and 0 GPU" in printed
    assert "images/s a trial (a single plain_cnn measured here for a moment" in printed
    assert call([*typed, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["trials"], figures["concurrent"], figures["rungs"]) == (27, 2, [100, 300])
    assert figures["images_left"] == figures["images"] == 27 * 100 + 9 * 200 + 3 * 600
    assert figures["hours"] == pytest.approx(figures["images"] * figures["seconds_per_image"] / 2 / 3600)
    assert 0 < figures["trial_bytes_median"] <= figures["trial_bytes_most"]
    assert not (tmp_path / "s").exists()


def test_a_plan_of_more_trials_knows_the_speed_of_the_search(
    data: Path, space: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "_COUNT_S", 0)
    before = {path: path.read_bytes() for path in copied.rglob("*.json")}
    outlook = plan_search(data, space, copied, trials=100, resume=True)
    # The trainer claims a second for 1,000 images.
    trials = open_search(copied).trials
    trained = sum(bool(trial.reports) for trial in trials)
    assert f"seconds at 1,000 images/s a trial (as {trained} trials of {copied} trained)" in str(outlook)
    assert outlook.images_left == outlook.plan.images - sum(trial.images_seen for trial in trials)
    assert {path: path.read_bytes() for path in copied.rglob("*.json")} == before


def test_a_warm_start_is_remembered(data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(checked_request, "say", said.append)
    fingerprint = PreparedDataset.open(data).manifest.fingerprint
    record = make_record(name="first", space=yaml.safe_load(SPACE), fingerprint=fingerprint)
    first = Ledger.create(tmp_path / "first", record)
    first.add({"architecture": "resnet18", "learning_rate": 1e-3, "dropout": 0.1, "optimizer": "adam"})
    first.report(0, 900, {"average_precision": 0.5}, 1.0, end=Verdict("completed"))
    keys: dict[str, Any] = {"hours": 1e-9, "_trainer": FakeTrainer()}  # over before anything trains
    found = run_search(data, space, tmp_path / "s", warm_start=tmp_path / "first", **keys)
    assert found.record.warm_starts == (str(tmp_path / "first"),)
    found = run_search(data, space, tmp_path / "s", resume=True, **keys)
    assert len(found.record.amendments) == 1
    assert said.count("warm start: 1 of 1 trials of first fit this space and are kept") == 2
    shutil.rmtree(tmp_path / "first")
    found = run_search(data, space, tmp_path / "s", resume=True, **keys)
    assert found.record.warm_starts == (str(tmp_path / "first"),)
    assert any(line.startswith(f"warm start: {tmp_path / 'first'} cannot be read any more, going on") for line in said)


def test_several_searches_teach_and_are_remembered(data: Path, space: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"hours": 1e-9, "_trainer": FakeTrainer()}
    fingerprint = PreparedDataset.open(data).manifest.fingerprint
    for name in ("a", "b"):
        record = make_record(name=name, space=yaml.safe_load(SPACE), fingerprint=fingerprint)
        first = Ledger.create(tmp_path / name, record)
        first.add({"architecture": "resnet18", "learning_rate": 1e-3, "dropout": 0.1, "optimizer": "adam"})
        first.report(0, 900, {"average_precision": 0.5}, 1.0, end=Verdict("completed"))
    both = (str(tmp_path / "a"), str(tmp_path / "b"))
    found = run_search(data, space, tmp_path / "s", warm_start=[tmp_path / "a", *both], **keys)
    assert found.record.warm_starts == both
    assert json.loads((tmp_path / "s" / "search.json").read_text())["amendments"][0]["warm_start"] == list(both)
    shutil.rmtree(tmp_path / "a")
    found = run_search(data, space, tmp_path / "s", resume=True, **keys)
    assert (found.record.warm_starts, len(found.record.amendments)) == (both, 1)
    assert plan_search(data, space, tmp_path / "s", resume=True).speed.source.endswith(f"trials of {both[1]} trained")


def test_limits_are_measured_once_and_kept_by_every_trial(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(measure_speed, "say", said.append)
    monkeypatch.setattr("ray.tune.run", tune_stand_in.run)  # networks are measured in Ray
    space = tmp_path / "space.yaml"
    space.write_text(SPACE + "constraints: {max_ms_per_slice: 1000, max_parameters: 5e6}\n")
    found = run_search(data, space, tmp_path / "s", trials=4, _trainer=FakeTrainer())
    assert {trial.parameters["architecture"] for trial in found.trials} == {"plain_cnn"}
    assert found.record.ms_per_slice is not None
    assert sorted(found.record.ms_per_slice) == ["blocks=1", "blocks=3", "blocks=4", "defaults"]
    assert said == ["constraints: measuring the time a slice of 4 networks"]
    again = run_search(data, space, tmp_path / "s", trials=5, resume=True, _trainer=FakeTrainer())
    assert again.record.ms_per_slice == found.record.ms_per_slice
    assert (len(again.trials), len(said)) == (5, 1)
    outlook = plan_search(data, space, tmp_path / "s", resume=True)
    assert 0.3 < outlook.figures()["draws_refused"] < 0.7
    assert "constraints: max_ms_per_slice 1,000, max_parameters 5,000,000: " in str(outlook)
    space.write_text(SPACE + "constraints: {max_parameters: 10}\n")
    with pytest.raises(ConfigError, match="must keep max_parameters 10, got none in 1,000, most refused by max_para"):
        run_search(data, space, tmp_path / "none", trials=4, _trainer=FakeTrainer())
    assert not (tmp_path / "none").exists()


def test_costs_are_measured_once_and_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    measured: list[str] = []

    def measure(space: SearchSpace, *_: Any) -> dict[str, float]:
        measured.append(space.name)
        return {"architecture=plain_cnn blocks=1": 0.001, "architecture=resnet18": 0.004}

    monkeypatch.setattr(run, "say", said.append)
    monkeypatch.setattr(measure_speed, "measure_costs", measure)
    monkeypatch.setattr("ray.tune.run", tune_stand_in.run)
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("min_peers: 2", "min_peers: 2, unit: cost"))
    found = run_search(data, space, tmp_path / "s", trials=2, _trainer=FakeTrainer())
    assert found.record.seconds_per_image == {"architecture=plain_cnn blocks=1": 0.001, "architecture=resnet18": 0.004}
    again = run_search(data, space, tmp_path / "s", trials=3, resume=True, _trainer=FakeTrainer())
    assert (again.record.seconds_per_image, len(again.trials)) == (found.record.seconds_per_image, 3)
    assert measured == ["tiny"]
    assert said == ["cost: 2 networks take 1 to 4 ms an image; every second draw is weighed by it"] * 2
    for known in ({}, {"architecture=another": 0.1}):
        written = read_json(found.files.search)
        write_json(found.files.search, {**written, "seconds_per_image": known})
        run_search(data, space, tmp_path / "s", trials=3, resume=True, _trainer=FakeTrainer())
    assert (measured, len(said)) == (["tiny"] * 3, 4), "of other networks, as of another release: they are timed again"


def test_a_space_of_one_speed_has_no_cost_to_look_at(data: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: x\nbudget: {images: 900, report_every: 100, first_rung: 100, unit: cost}\n"
        "parameters: {learning_rate: {loguniform: [1.0e-5, 1.0e-1]}}\n"
    )
    message = "budget.unit: cost needs parameters that decide the speed of a network, such as a choice of architecture"
    for start in (run_search, plan_search):
        with pytest.raises(ConfigError, match=message):
            start(data, space, tmp_path / "s", trials=2)  # type: ignore[operator]


def test_a_warm_start_says_what_differs(
    data: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(checked_request, "say", said.append)
    source = yaml.safe_load(SPACE)
    source["budget"]["images"] = 9000
    first = Ledger.create(tmp_path / "first", make_record(name="first", space=source, fingerprint="beef" * 8))
    first.add({"foo": 1})
    first.report(0, 9000, {"average_precision": 0.5}, 1.0, end=Verdict("completed"))
    run_search(data, space, tmp_path / "s", warm_start=tmp_path / "first", hours=1e-9, _trainer=FakeTrainer())
    fingerprint = PreparedDataset.open(data).manifest.fingerprint
    assert said[0] == (
        "warm start: 0 of 1 trials of first fit this space and are kept, though the searches differ "
        f"(dataset: there {'beef' * 8}, asked {fingerprint}; budget.images: there 9000, asked 900)"
    )


def test_no_search_is_its_own_teacher(data: Path, space: Path, tmp_path: Path) -> None:
    run_search(data, space, tmp_path / "s", hours=1e-9, _trainer=FakeTrainer())
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for teacher in ("s", "link"):
        with pytest.raises(
            ConfigError, match="must be another search, got that of --out, which it knows; leave it out"
        ):
            run_search(data, space, tmp_path / "s", resume=True, warm_start=tmp_path / teacher, _trainer=FakeTrainer())
    assert open_search(tmp_path / "s").record.warm_starts == ()


DRIVER = """
import sys
from ich_ray import errors
from ich_ray.search.run import run_search
from ich_ray.search.trial_output import read_output
from ich_ray.search.tune.sampler import LedgerSampler
from tests.search.fakes import FakeTrainer
try:
    run_search(*sys.argv[1:4], trials=8, _trainer=FakeTrainer(wait_s=0.15))
except errors.IchRayError as error:
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
"""


def interrupted(data: Path, space: Path, out: Path, with_signal: signal.Signals) -> tuple[int, str]:
    """A driver of its own, sent a signal once it has some reports; its exit code and what it said."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(data), str(space), str(out)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and driver.poll() is None:
        if (out / "search.json").exists() and sum(len(trial.reports) for trial in open_search(out).trials) >= 5:
            break
        time.sleep(0.05)
    driver.send_signal(with_signal)
    said = driver.communicate(timeout=60)[1]
    return driver.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_driver_loses_nothing(data: Path, space: Path, tmp_path: Path, with_signal: signal.Signals) -> None:
    out = tmp_path / "s"
    code, said = interrupted(data, space, out, with_signal)
    before = open_search(out)
    assert before.count("running") >= 1
    if with_signal != signal.SIGKILL:
        assert code == 130
        assert "got interrupted after" in said
        assert "add --resume to go on, nothing is lost" in said
        assert "Traceback" not in said
    found = run_search(data, space, out, resume=True, _trainer=FakeTrainer())
    check_invariants(found, 8)
    for trial in before.trials:
        after = found.trials[trial.number]
        assert after.parameters == trial.parameters
        assert after.seed == trial.seed
        assert after.reports[: len(trial.reports)] == trial.reports
        assert after.attempts == trial.attempts + (trial.state == "running")
