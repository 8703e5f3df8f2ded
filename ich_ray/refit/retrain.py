"""Retrain the chosen hyperparameters, longer, with any number of seeds, by Ray Train.

Each seed's training (ray_train.py) stands in `SEARCH/final/retraining-<identity>/`, where the identity is a hash of
the draw, the data, the budget and the seed, so that the same one goes on, and one that has ended is not repeated. When
all have ended, the best weights of the seed that retrain_record.py chooses become the bundle and the folders are
removed. Nothing is unpickled from the search.

Planned for all of RSNA (752,803 slices of 128x128x3, 60 % train, 15 % validation; search_spaces/default.yaml):

- Disk: 37 GB of prepared images where every machine sees them; two states of a seed, for a ResNet50 0.27 GiB each.
- Memory: 27.8 GB of train and validation images, mapped once a machine, and once a worker on its GPU if half of that
  holds them (80 GB does, 40 GB does not: then batches come from the host). Beside them a ResNet50 at batch 256 takes
  6.7 GiB of activations in float32 and 0.35 GiB of weights, gradients and optimizer; ConvNeXt tiny 8.5 and 0.42.
- Images: 8.1 million at most (twice 4.05 million), and 54 reports that each look at 113,000 validation slices.
- Hours: 8.1 million images take 2.25 h at 1,000 images/s, and validation adds about a quarter, as a forward pass takes
  about a fourth of a training step. One CPU core was measured at 232 images/s for the plain CNN (4 blocks of 32
  filters and more), 19 EfficientNet-B0, 12 ResNet18, 5.3 ResNet50 and 5.1 ConvNeXt tiny: 12, 145, 230, 510 and 525
  core hours a seed. A GPU's rate is what the search before it measured there: its report and `search --plan
  --warm-start` say it, and hours per GPU follow by the line above. K workers take a K-th, less what summing
  gradients costs; seeds train one after another.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, TrialFailure
from ich_ray.machines import ask_machines
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import say
from ich_ray.refit.bundle_builder import make_bundle
from ich_ray.refit.confirmation import chosen_trial
from ich_ray.refit.ensemble_members import check_ensemble, other_trials
from ich_ray.refit.ray_train import RetrainPlan, best_report, checkpoints_in, fit, read_reports
from ich_ray.refit.retrain_record import (
    MemberRun,
    RetrainCourse,
    Retraining,
    SeedRun,
    best_runs,
    check_views,
    folder_names,
    parse_views,
    planned,
)
from ich_ray.results import SearchResult, open_network_search
from ich_ray.runtime import connected
from ich_ray.search.ledger import trial_seed
from ich_ray.storage import Location, locate, read_record, remove, write_json
from ich_ray.trial_records import Objective, Report, TrialResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from upath import UPath

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.vocabulary import Patients, Placement

__all__ = ["retrain"]

_POLL_S = 0.5
_RUN = "run.json"  # in the folder of a seed that has ended


def retrain(
    search: Location,
    *,
    workers: int = 1,
    gpus_per_worker: float | None = None,
    patients: Patients = "train",
    seeds: int = 1,
    ensemble: int = 1,
    course: RetrainCourse | None = None,
    tta: Sequence[str] = (),
    placement: Placement = "auto",
    address: str | None = None,
) -> Bundle:
    """Train the chosen trial's hyperparameters again, and make the bundle, which is not calibrated yet.

    On the training patients: up to twice the search's budget, ended by patience, or exactly that budget where the
    schedule goes towards its end; the weights of the best report are kept. With the validation patients among them
    there is nothing left to stop by: as many passes over the data as gave the best report of the retraining before,
    else of the trial, or the whole budget of a schedule that goes towards its end, and the last weights
    (`retrain_record.planned`). Either way the batch size is that of all workers together, so their number does not
    change what is learned. Writes retraining.json.

    Args:
        search: the search folder, on storage that every worker can reach.
        workers: processes that train one network together.
        gpus_per_worker: one if the cluster has any and this is not given, else as given; 0 trains on CPUs.
        patients: who trains.
        seeds: train it so many times, one after another, the first time with the trial's own seed. The bundle is the
            one with the best validation report; how far they lie apart is written down.
        ensemble: the bundle answers with the mean logits of so many networks: of the chosen trial and the next best
            ones that are given the same input, each trained again; or, with `seeds`, of the best of these. A trial that
            fails is left out.
        course: what each seed is shown, if not by the rules above.
        tta: views of test-time augmentation; they change no weight, and what the bundle answers is the mean over them.
        placement: where the images lie while training, see `data.image_store.place`.
        address: of a Ray cluster.

    Raises:
        ConfigError: no search, too many workers or accelerators asked for, a view that there is not or that the
            trial cannot be shown, or several seeds that nothing can tell apart.
        IchRayError: no completed trial, or the training failed: of several seeds, every one.
    """
    _check_seeds(seeds, patients)
    check_ensemble(ensemble, seeds)
    views = parse_views(tta)
    found = open_network_search(search)
    trial = chosen_trial(found)
    dataset = PreparedDataset.of_search(found)
    drawn = Hyperparameters.model_validate(trial.parameters)
    check_views(views, [drawn])
    before = _rehearsal(found, trial, drawn) if patients != "train" else ()
    if course is None:
        course = planned(found, trial, drawn, dataset.manifest.roles, patients, before)
    tasks = [_Task.of(found, trial, course, patients, placement, seeds)]
    for one in other_trials(found, trial, ensemble - 1) if seeds == 1 else ():
        own = planned(found, one, Hyperparameters.model_validate(one.parameters), dataset.manifest.roles, patients, ())
        tasks.append(_Task.of(found, one, own, patients, placement))
    from ich_ray.search.preflight import check_workers  # with PyTorch

    check_workers(dataset, [task.course.parameters for task in tasks], workers)
    beside = f", then {len(tasks) - 1} more for an ensemble" if len(tasks) > 1 else ""
    say(
        f"  retraining trial {trial.number} on {patients} for at most {course.images:,} images, {workers} worker(s)"
        f"{beside}"
    )
    with connected(address):
        ask_machines()
        first, *others = [
            [_run(plan, workers, gpus_per_worker, alone=number == 0 and seeds == 1) for plan in task.plans]
            for number, task in enumerate(tasks)
        ]
    run = _kept(found, first, patients)
    ranked = best_runs(first, found.objective)[:ensemble] if seeds > 1 else [run]
    members = [(tasks[0], one) for one in ranked if one is not run]
    members += [(task, one) for task, (one,) in zip(tasks[1:], others, strict=True) if _may_answer(one, patients)]
    retraining = Retraining(
        trial=trial.number,
        parameters=course.parameters.model_dump(),
        workers=workers,
        reports=tuple(read_reports(locate(tasks[0].plan(run).folder))),
        best_images_seen=run.best_images_seen,
        stopped_early=run.images_seen < course.images,
        seconds=sum(one.seconds for each in (first, *others) for one in each),
        device=run.device,
        setup=run.setup,
        patients=patients,
        images=course.images,
        budget=course.budget,
        seed=run.seed,
        runs=tuple(first),
        rehearsal=before,
        members=tuple(task.member(one) for task, one in members),
    )
    states = [task.state(one) for task, one in members]
    bundle = make_bundle(
        found, trial, course.parameters, dataset, tasks[0].state(run), retraining, views, member_states=states
    )
    write_json(found.files.retraining, retraining.model_dump(mode="json"))
    for folder in (plan.folder for task in tasks for plan in task.plans):
        remove(locate(folder))
    return bundle


@dataclass(frozen=True)
class _Task:
    """A trial that is trained again: a plan for each seed."""

    trial: TrialResult
    course: RetrainCourse
    plans: list[RetrainPlan]

    @classmethod
    def of(
        cls,
        found: SearchResult,
        trial: TrialResult,
        course: RetrainCourse,
        patients: Patients,
        placement: Placement,
        seeds: int = 1,
    ) -> _Task:
        plan = replace(_plan(found, course, patients), placement=placement, precision=found.record.precision)
        numbers = [trial_seed(trial.seed, number) if number else trial.seed for number in range(seeds)]
        plans = [_seeded(found, replace(plan, seed=seed), course.parameters) for seed in numbers]
        return cls(trial, course, plans)

    def plan(self, run: SeedRun) -> RetrainPlan:
        return next(one for one in self.plans if one.seed == run.seed)

    def state(self, run: SeedRun) -> UPath:
        """The weights that a run has kept."""
        return checkpoints_in(locate(self.plan(run).folder)).file(run.best_images_seen)

    def member(self, run: SeedRun) -> MemberRun:
        return MemberRun(trial=self.trial.number, parameters=self.course.parameters.model_dump(), run=run)


def _check_seeds(seeds: int, patients: Patients) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds: must be at least 1, got {seeds}; 3 show a spread")
    if seeds > 1 and patients != "train":
        raise ConfigError(
            f"--seeds: with {patients} nobody is left to tell seeds apart, got {seeds}; retrain with --seeds {seeds} "
            f"first and then with --patients {patients} alone, which goes by what those showed"
        )


def _rehearsal(found: SearchResult, trial: TrialResult, parameters: Hyperparameters) -> tuple[SeedRun, ...]:
    """The seeds of the retraining before, if it was of this trial, that validation patients could measure."""
    if not found.files.retraining.exists():
        return ()
    before = read_record(found.files.retraining, Retraining, "remove the file and retrain")
    if before.trial != trial.number or not parameters.is_same(before.parameters):
        return ()
    if before.patients != "train":  # its own runs may be of folds, each measured on other patients
        return before.rehearsal
    return tuple(run for run in before.runs if run.value is not None)


def _plan(found: SearchResult, course: RetrainCourse, patients: Patients) -> RetrainPlan:
    """Without a seed, and so without a folder."""
    return RetrainPlan(
        folder="",
        dataset=found.record.dataset_folder,
        fingerprint=found.record.fingerprint,
        parameters=course.parameters.identity(),
        objective=found.objective.model_dump(include={"metric", "mode"}),
        images=course.images,
        report_every=course.report_every,
        seed=0,
        patients=patients,
    )


def _seeded(found: SearchResult, plan: RetrainPlan, parameters: Hyperparameters) -> RetrainPlan:
    """With its folder: the one that is there, or the one to be."""
    folders = [found.files.final / name for name in folder_names(asdict(plan), parameters)]
    return replace(plan, folder=str(next((folder for folder in folders if folder.exists()), folders[0])))


def _run(plan: RetrainPlan, workers: int, gpus_per_worker: float | None, *, alone: bool) -> SeedRun:
    """Train one seed to its end. Of several, one that fails is a finding; the only one is an error."""
    folder = locate(plan.folder)
    if (folder / _RUN).exists():
        return read_record(folder / _RUN, SeedRun, f"remove {folder} and retrain")
    objective, started = Objective.model_validate(plan.objective), time.monotonic()
    try:
        with _report_progress(folder, objective.metric):
            device, setup = fit(plan, workers, gpus_per_worker)
    except TrialFailure as failure:
        if alone:
            raise
        say(f"  seed {plan.seed} failed: {failure}")
        return SeedRun(seed=plan.seed, reason=failure.reason, seconds=time.monotonic() - started)
    reports = read_reports(folder)
    best = best_report(reports, objective)
    run = SeedRun(
        seed=plan.seed,
        value=best.metrics[objective.metric] if best else None,
        best_images_seen=(best or reports[-1]).images_seen,
        images_seen=reports[-1].images_seen,
        seconds=time.monotonic() - started,
        device=device,
        setup=setup,
    )
    write_json(folder / _RUN, run.model_dump(mode="json"))
    return run


def _kept(found: SearchResult, runs: Sequence[SeedRun], patients: Patients) -> SeedRun:
    """The seed that becomes the bundle."""
    if patients != "train":
        return runs[0]
    if best := best_runs(runs, found.objective):
        return best[0]
    failed = [run.reason for run in runs if run.reason]
    if failed:
        raise IchRayError(
            f"retrain: one seed at least must get to its end, got {', '.join(failed)}; confirm chooses a steadier trial"
        )
    raise IchRayError(
        f"{found.files.final}: {found.objective.metric} must be finite in one report at least, got none; are there "
        "positive validation slices?"
    )


def _may_answer(run: SeedRun, patients: Patients) -> bool:
    """Whether a trial beside the chosen one has come out; the objective of its reports must have been finite once."""
    if not run.reason and patients == "train" and run.value is None:
        say(f"  ensemble: seed {run.seed} is left out, its objective was finite in no report")
        return False
    return not run.reason


@contextmanager
def _report_progress(folder: UPath, metric: str) -> Iterator[None]:
    """Say each report of the workers as it reaches the folder."""
    done = threading.Event()
    seen = len(read_reports(folder))
    if seen:
        say(f"  going on after {seen} reports of an earlier attempt")

    def follow() -> None:
        told, last = seen, False
        while not last:
            last = done.wait(_POLL_S)
            reports: list[Report] = []
            with suppress(Exception):  # of a storage, which is asked again at the next look
                reports = read_reports(folder)
            for report in reports[told:]:
                told += 1
                name = metric if metric in report.metrics else "train_loss"
                value = report.metrics.get(name)
                figure = "undefined" if value is None else f"{value:.4f}"
                say(f"  retrain: {report.images_seen:,} images, {name} {figure}, {report.elapsed_s:.0f} s")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
