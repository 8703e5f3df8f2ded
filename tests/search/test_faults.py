"""What may happen to a search, and that nothing is lost by it.

    driver SIGKILL, 15 random moments   test_kills_at_random_moments_lose_nothing, for three searches
    driver SIGKILL or SIGINT            test_run.py: test_a_stopped_driver_loses_nothing
    trial worker SIGKILL by its pid     test_a_worker_killed_by_its_recorded_pid_is_started_again
    trial worker SIGKILL while writing  test_a_process_killed_while_it_writes_a_state_makes_one_report_again
    trial worker that always dies       test_a_trial_that_always_dies_fails_and_the_search_ends
    node killed hard, node late         test_faults_cluster.py: test_a_node_that_joins_late_is_used_and_killed_hard_...
    node taken away after a notice      test_faults_cluster.py: test_a_machine_taken_away_after_its_notice_leaves_no_gap
    node that stands still              test_faults_cluster.py: test_a_machine_that_stood_still_spoils_nothing_when_...
    head (GCS) killed, started again    test_faults_cluster.py: test_a_head_that_is_started_again_or_dies_is_told_in_...
    disk full                           test_a_full_disk_ends_it_with_the_cause; a stand-in of it in test_run.py
    checkpoint truncated or missing     test_a_damaged_checkpoint_goes_back_and_says_so; piece by piece in test_trial.py
    two drivers on one search           test_a_second_driver_is_refused_within_5_s
    trials that raise or report NaN     test_run.py: test_trials_that_raise_or_report_nan_do_not_end_the_search
    resources after all of it           test_faults_cluster.py: test_a_killed_driver_gives_its_cpus_back;
                                        test_no_process_is_left
    one byte flipped in a block         data/test_dataset.py, search/test_audit.py

Every search here is audited where it was interrupted and when it has ended. The faults of prepare are in
data/test_faults.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.results import SearchResult, open_search
from ich_ray.search.audit.search_audit import audit
from tests.disks import free_bytes, small_disk
from tests.prepared import make_dataset
from tests.search.drivers import Driver, family, reported
from tests.search.fakes import SPACE, FakeTrainer, curve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

AGENTS = (["ray::DashboardAgent"], ["ray::RuntimeEnvAgent"])

FAMILIES: list[psutil.Process] = []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "data"
    make_dataset(folder, patients=12, size=16)
    return folder


@pytest.fixture
def arguments(data: Path, tmp_path: Path) -> list[str]:
    """Of a search whose trials are not stopped early."""
    (tmp_path / "space.yaml").write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    return [str(data), "--space", str(tmp_path / "space.yaml")]


def end(arguments: list[str], out: Path, trainer: FakeTrainer | None = None) -> SearchResult:
    """Go on with a search until it has ended, and audit it."""
    driver = Driver([*arguments, "--resume"], out, trainer or FakeTrainer())
    assert driver.wait(300) == 0, driver.said.read_text()
    found = audit(out)
    assert (found.state, found.breached) == ("ended", ())
    return open_search(out)


def kill(driver: Driver) -> None:
    """By SIGKILL; its workers may train for a moment longer, so that they are waited for.

    Ray's agents need a minute to see that they are alone; they hold nothing and are not waited for.
    """
    processes = family(driver)
    FAMILIES.extend(processes)
    agents = [process for process in processes if process.cmdline()[:1] in AGENTS]
    driver.kill()
    psutil.wait_procs(set(processes) - set(agents), timeout=60)
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()


def trained(log: Path) -> dict[int, list[int]]:
    """images_seen of the reports that were trained, by the seed of the trial, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for line in log.read_text().splitlines() if log.exists() else []:
        seed, seen = map(int, line.split())
        found[seed].append(seen)
    return found


def check_redone(log: Path, before: dict[int, list[int]]) -> None:
    """At most the last two reports of each trial were trained again: one whose state was not whole, and the next."""
    for seed, seen in trained(log).items():
        old, new = before.get(seed, []), seen[len(before.get(seed, [])) :]
        assert new == sorted(set(new)), new
        assert not old or not new or new[0] >= old[-1] - 100, (old, new)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kills_at_random_moments_lose_nothing(data: Path, tmp_path: Path, seed: int) -> None:
    (tmp_path / "space.yaml").write_text(SPACE.replace("first_rung: 100", "first_rung: 300"))
    arguments = [str(data), "--space", str(tmp_path / "space.yaml"), "--seed", str(seed)]
    out, log, moments = tmp_path / "s", tmp_path / "log", random.Random(seed)
    trainer = FakeTrainer(wait_s=0.03, log=str(log))
    there: list[SearchResult] = []
    for number in range(5):
        count = reported(there[-1]) if there else 0
        trials = 20 + (len(there[-1].trials) if there else 0)  # so many that the kill comes before the end
        done = trained(log)
        driver = Driver(
            [*arguments, "--trials", str(trials), *(["--resume"] if number else [])], out, trainer or FakeTrainer()
        )
        driver.until(lambda found, count=count: reported(found) > count)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.6))
        kill(driver)
        assert driver.process.exitcode == -signal.SIGKILL, driver.said.read_text()
        found = audit(out)
        assert (found.state, found.breached) == ("interrupted", ())
        there.append(open_search(out))
        check_redone(log, done)
        if number:
            check_kept(there[-2], there[-1])
    done = trained(log)
    check_kept(there[-1], end(arguments, out, trainer))
    check_redone(log, done)


def check_kept(before: SearchResult, after: SearchResult) -> None:
    """Nothing that stood in the ledger has changed."""
    for trial in before.trials:
        later = after.trials[trial.number]
        assert (later.parameters, later.seed) == (trial.parameters, trial.seed)
        assert later.reports[: len(trial.reports)] == trial.reports
        if trial.state != "running":
            assert later == trial


def test_a_worker_killed_by_its_recorded_pid_is_started_again(arguments: list[str], tmp_path: Path) -> None:
    out, log = tmp_path / "s", tmp_path / "log"
    driver = Driver([*arguments, "--trials", "4"], out, FakeTrainer(wait_s=0.2, log=str(log)))
    found = driver.until(lambda found: any(3 <= len(trial.reports) < 7 for trial in found.trials))
    victim = next(trial for trial in found.trials if 3 <= len(trial.reports) < 7)
    before = trained(log)
    os.kill(int(victim.where.rpartition(":")[2]), signal.SIGKILL)
    assert driver.wait(300) == 0, driver.said.read_text()
    assert audit(out).breached == ()
    after = open_search(out)
    assert after.count("completed") == 4
    assert [trial.attempts for trial in after.trials] == [2 if t.number == victim.number else 1 for t in after.trials]
    assert after.trials[victim.number].where != victim.where
    assert f"trial {victim.number}: its process died, starting it again" in driver.said.read_text()
    assert len(trained(log)[victim.seed]) <= 11  # of nine reports
    assert trained(log)[victim.seed][: len(before[victim.seed])] == before[victim.seed]


def test_a_process_killed_while_it_writes_a_state_makes_one_report_again(arguments: list[str], tmp_path: Path) -> None:
    """The report is in the ledger, its state is not: the next attempt goes on from the state before it."""
    (tmp_path / "kill").touch()
    trainer = FakeTrainer(log=str(tmp_path / "log"), kill_saving=str(tmp_path / "kill"))
    driver = Driver([*arguments, "--trials", "2"], tmp_path / "s", trainer)
    assert driver.wait(300) == 0, driver.said.read_text()
    assert audit(tmp_path / "s").breached == ()
    assert not (tmp_path / "kill").exists()
    trials = open_search(tmp_path / "s").trials
    for trial in trials:
        drawn = Hyperparameters.model_validate(trial.parameters)
        undisturbed = [(seen, pytest.approx(curve(drawn, seen))) for seen in range(100, 1000, 100)]
        assert [(one.images_seen, one.metrics["average_precision"]) for one in trial.reports] == undisturbed
    assert sorted(trial.attempts for trial in trials) == [1, 2]
    (victim,) = (trial for trial in trials if trial.attempts == 2)
    assert victim.detail == "", "that is no damage"
    seen = trained(tmp_path / "log")[victim.seed]
    assert sorted({*seen}) == [*range(100, 1000, 100)]
    # Training went on beside the write that was killed, so that the report after it may have been made by then.
    assert [again for again in seen if seen.count(again) == 2] in ([300, 300], [300, 400, 300, 400])


def test_a_trial_that_always_dies_fails_and_the_search_ends(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        (tmp_path / "space.yaml").read_text() + "points: [{learning_rate: 0.09}, {learning_rate: 0.001}]\n"
    )
    driver = Driver([*arguments, "--trials", "2"], tmp_path / "s", FakeTrainer(kill_above=0.05))
    assert driver.wait(300) == 0, driver.said.read_text()
    assert audit(tmp_path / "s").breached == ()
    first, second = open_search(tmp_path / "s").trials
    assert (first.state, first.reason, first.attempts) == ("failed", "worker_died", 4)
    assert first.detail == "its process was lost 4 times"
    assert (second.state, second.attempts) == ("completed", 1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1) as folder:
        yield folder


def test_a_full_disk_ends_it_with_the_cause(disk: Path, arguments: list[str]) -> None:
    out, spare = disk / "s", disk / "spare"
    free = free_bytes(disk)
    for number, left_kib in enumerate((24, 4)):  # in pages of 4, of which each trial would need six
        used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
        spare.write_bytes(b"\0" * (free - used - left_kib * 1024))
        driver = Driver([*arguments, "--trials", "4", *(["--resume"] if number else [])], out, FakeTrainer())
        assert driver.wait(300) == 1, driver.said.read_text()
        last = driver.said.read_text().splitlines()[-1]
        assert last.startswith(f"ich-ray: {out}: a search needs its cluster and room for its files, got ")
        assert "No space left on device" in last
        assert "remove the cause and add --resume to go on, nothing is lost" in last
        assert "Traceback" not in driver.said.read_text()
        found = audit(out)
        assert (found.state, found.breached) == ("interrupted", ())
        assert open_search(out).count("failed") == 0
        spare.unlink()
    assert end(arguments, out).count("completed") == 4


def test_a_damaged_checkpoint_goes_back_and_says_so(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "s"
    driver = Driver([*arguments, "--trials", "3"], out, FakeTrainer(wait_s=0.3))
    driver.until(lambda found: len(found.trials) == 2 and min(len(trial.reports) for trial in found.trials) >= 3)
    kill(driver)
    torn, lost = open_search(out).trials
    assert torn.checkpoint
    state = out / torn.checkpoint.file
    letter, token = state.stem.split("-")
    untold = state.with_name(f"{'b' if letter == 'a' else 'a'}-{token}.json")
    if json.loads(untold.read_text())["images_seen"] > torn.checkpoint.images_seen:
        untold.unlink()  # written after the report: this state would be newer than the one that is torn here
    one_before = untold.exists()
    state.write_bytes(state.read_bytes()[:5])
    shutil.rmtree(out / "checkpoints" / "00001")
    found = audit(out)
    assert [check.invariant for check in found.breached] == ["I7"]
    assert [breach[:8] for breach in found.breached[0].breaches] == ["trial 0:", "trial 1:"]
    after = end(arguments, out)
    assert after.count("completed") == 3
    name, seen, before = state.stem, torn.images_seen, torn.checkpoint.images_seen - 100
    if one_before:
        assert after.trials[0].detail == f"checkpoint {name} was damaged: went back from {seen} to {before} images"
    else:
        assert after.trials[0].detail == f"no good checkpoint after {seen} images: started again"
    assert after.trials[1].detail == f"no good checkpoint after {lost.images_seen} images: started again"


def test_a_second_driver_is_refused_within_5_s(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "s"
    first = Driver([*arguments, "--trials", "4"], out, FakeTrainer(wait_s=0.2))
    first.until(lambda found: reported(found) > 0)
    started = time.monotonic()
    second = Driver([*arguments, "--resume"], out, FakeTrainer())
    assert second.wait(60) == 2
    assert time.monotonic() - started < 5
    said = second.said.read_text()
    assert said.count("\n") == 1
    assert "one process at a time may write a search, another one is at work; wait for it or stop it" in said
    assert first.wait(300) == 0, first.said.read_text()
    assert audit(out).breached == ()


def test_no_process_is_left() -> None:
    assert len(FAMILIES) >= 3  # of each killed driver: itself, what Ray started, and the workers of that
    _, alive = psutil.wait_procs(FAMILIES, timeout=60)
    assert alive == []
