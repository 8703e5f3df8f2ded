"""Run all stages in order, from prepare to report; finished stages are skipped.

A stage is finished when its own files say so; nothing about the road itself is stored. The demo is this road on
patients that the phantom makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from ich_ray import progress
from ich_ray.ct.windowing import DEFAULT_WINDOWS
from ich_ray.errors import ConfigError
from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search.request import TrialResources
from ich_ray.search.space.builtin_spaces import builtin_space
from ich_ray.storage import DatasetFiles, Location, SearchFiles, locate, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.refit.confirmation import Confirmation
    from ich_ray.refit.retrain_record import RetrainCourse
    from ich_ray.search.request import TrialKeywords
    from ich_ray.trial_records import TrialResult
    from ich_ray.vocabulary import TtaView

__all__ = ["DEMO_PATIENTS", "DEMO_TRIALS", "RunResult", "demo", "finish", "run"]

# A few trials on a few folds: six trainings to their end, about half of what a search of 100 trials costs, and
# validated on twice as many patients. `ich-ray confirm` does more of it.
CONFIRM_TOP = 3
CONFIRM_PARTS = 2

# Trials of the search for a sequence model: one costs minutes where a network costs hours.
SEQUENCE_TRIALS = 8

# Chosen so that the demo takes about five minutes on two cores and ASHA has trials to stop.
DEMO_PATIENTS = 160
DEMO_TRIALS = 10
DEMO_CONFIRM = 2
DEMO_SEQUENCE = 3
# RSNA slices have 512 pixels a side; a quarter of that is 170 MB instead of 670.
DEMO_SIZE = 256


@dataclass(frozen=True)
class RunResult:
    """Where everything of a run lies, opened; `confirmation` is None where nothing was confirmed."""

    dataset: PreparedDataset
    search: SearchResult
    confirmation: Confirmation | None
    card: dict[str, Any]
    report: UPath

    @property
    def chosen(self) -> TrialResult:
        """What the bundle and its figures are of."""
        from ich_ray.refit.confirmation import chosen_trial

        return chosen_trial(self.search)

    @property
    def bundle(self) -> UPath:
        return self.search.files.bundle


def run(
    images: Location,
    labels: Location,
    space: Location,
    out: Location,
    *,
    size: int = 128,
    windows: str = DEFAULT_WINDOWS,
    trials: int | None = None,
    confirm: int = CONFIRM_TOP,
    tta: Sequence[str] = (),
    sequence: int = SEQUENCE_TRIALS,
    seed: int = 0,
    slab_mm: float = 0,
    limit_rejected: float = 0.05,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    examinations: Location | None = None,
    address: str | None = None,
    notify: str | None = None,
    **resources: Unpack[TrialKeywords],
) -> RunResult:
    """From a folder of DICOM files to an evaluated bundle and a report below `out`.

    Args:
        images: folder of DICOM files.
        labels: RSNA long table or wide table, of slices.
        space: search space file.
        out: receives `dataset/` and `search/`.
        size: rows and columns of the prepared images.
        windows: see `ich_ray.ct.windowing.parse_windows`.
        trials: how many to draw; the search's default if not given.
        confirm: so many of the best trials are trained again before one of them is chosen; 0 takes the search's best,
            and is refused where a confirmation has chosen: every later stage, and the report, go by that.
        tta: see `retrain`; `depth_flip` is left out, and said, where the chosen trial sees no neighbors. Refused where
            a bundle of the chosen trial is there that was made with other views.
        sequence: trials of the search for a sequence model, see `ich_ray.refit.sequence`; 0 for none, which a bundle
            that has one keeps.
        seed: of roles, draws, weights and batches.
        slab_mm: to which thin series are averaged, see `prepare`.
        limit_rejected: largest share of files that may be rejected.
        columns: what columns of the label tables mean, see `prepare`.
        examinations: labels of series, studies or patients, beside those of slices.
        address: a Ray cluster; a private one on this machine if not given.
        notify: where to tell how the search goes, see `search`.
        resources: of each trial, by the names of `ich_ray.search.request.TrialResources`.

    Raises:
        ConfigError: something asked cannot be done; nothing was written over.
        RejectionLimitError: too many files were rejected.
    """
    from ich_ray.data.prepare.run import prepare
    from ich_ray.refit.confirmation import confirmed
    from ich_ray.refit.retrain_record import check_views, parse_views
    from ich_ray.search.cluster_resources import ClusterResources
    from ich_ray.search.preflight import plan_slots
    from ich_ray.search.run import run_search
    from ich_ray.search.space.space import sampled
    from ich_ray.search.space.yaml_file import load_space

    held = TrialResources(**resources)
    checked = load_space(
        space, "network"
    )  # a mistake here, or in what a trial holds, must not cost an hour of decoding first
    check_views(parse_views(tta), sampled(checked))
    root = locate(out)
    files = SearchFiles(root / "search")
    if not confirm and (before := confirmed(files)) is not None:
        raise ConfigError(
            f"--confirm 0: the search's best is taken where nothing was confirmed, got {files.confirmation}, which "
            f"chose trial {before.chosen}; leave out --confirm to keep to it, or move the file away"
        )
    with connected(address):
        if not DatasetFiles(root / "dataset").manifest.exists():
            plan_slots(ClusterResources().machines(), held)
        progress.say("prepare")
        dataset = prepare(
            images,
            labels,
            root / "dataset",
            size=size,
            windows=windows,
            seed=seed,
            slab_mm=slab_mm,
            limit_rejected=limit_rejected,
            columns=columns,
            level="slice" if examinations is None else None,  # with them it is theirs, and told by their columns
            examinations=examinations,
        )
        progress.say("search")
        run_search(
            dataset.files.root,
            space,
            files.root,
            trials=trials,
            seed=seed,
            resume=files.search.exists(),
            notify=notify,
            **resources,
        )
        if confirm:
            _confirm(files, dataset, confirm, resources)
        page = finish(files, tta=tta, sequence=sequence)
    from ich_ray.bundle.card_file import read_card

    return RunResult(
        dataset, open_search(files.root), confirmed(files), read_card(files.bundle).model_dump(mode="json"), page
    )


def demo(out: Location, *, sequence: int = DEMO_SEQUENCE) -> RunResult:
    """The road on patients that the phantom makes: a few minutes on two cores.

    Args:
        out: see `run`.
        sequence: see `run`.
    """
    from ich_ray.ct.phantom import write_phantom

    root = locate(out)
    images, labels = root / "dicom" / "stage_2_train", root / "dicom" / "stage_2_train.csv"
    if not labels.exists():  # the phantom writes it last
        progress.say(f"phantom: {DEMO_PATIENTS} synthetic patients as DICOM below {root}")
        write_phantom(root / "dicom", patients=DEMO_PATIENTS, seed=0, size=DEMO_SIZE)
    space = builtin_space("demo")
    return run(images, labels, space, root, trials=DEMO_TRIALS, confirm=DEMO_CONFIRM, sequence=sequence)


def _confirm(files: SearchFiles, dataset: PreparedDataset, top: int, resources: TrialKeywords) -> None:
    """Unless there is nothing to choose among, or those that are best now were confirmed already."""
    from ich_ray.data.folds import check_folds
    from ich_ray.refit.confirm import confirm
    from ich_ray.refit.confirmation import confirmed

    found = open_search(files.root)
    best = [trial.number for trial in found.ranked() if trial.state == "completed" and trial.value is not None][:top]
    before = confirmed(files)
    if before is not None and set(best) <= {candidate.trial for candidate in before.candidates}:
        return
    if len(best) < 2:
        progress.say("confirm: skipped, among fewer than two trials there is nothing to choose")
        return
    progress.say("confirm")
    folds: int | None = CONFIRM_PARTS
    seeds: int | None = None
    try:
        check_folds(dataset, CONFIRM_PARTS)
    except ConfigError as error:  # too few patients, and nobody asked for folds
        progress.say(f"  with new seeds in place of folds: {error}")
        folds, seeds = None, CONFIRM_PARTS
    if resources.get("gpus_per_trial") == "auto":  # shares are of a search alone
        resources = {**resources, "gpus_per_trial": None}
    confirm(files.root, top=top, folds=folds, seeds=seeds, **resources)


def finish(
    files: SearchFiles, *, course: RetrainCourse | None = None, tta: Sequence[str] = (), sequence: int = 0
) -> UPath:
    """Everything after the search that its bundle's card does not say is done; returns the report.

    Args:
        files: of the search.
        course: see `retrain`.
        tta: see `run`.
        sequence: see `run`.

    Raises:
        ConfigError: the bundle that is there has other views than these.
    """
    from ich_ray.assess.calibration import calibrate
    from ich_ray.assess.evaluate import evaluate
    from ich_ray.bundle.card_file import read_card
    from ich_ray.html_report.page import report
    from ich_ray.refit.confirmation import chosen_trial
    from ich_ray.refit.retrain import retrain
    from ich_ray.refit.retrain_record import parse_views

    chosen = chosen_trial(open_search(files.root))
    views = _views_of(chosen, parse_views(tta))
    if _retrained(files) != chosen.number:
        progress.say(f"retrain: trial {chosen.number}")
        retrain(files.root, course=course, tta=views)
    elif views and (made := read_card(files.bundle).tta) != views:
        raise ConfigError(
            f"--tta {','.join(views)}: the bundle must have been made with it, got {files.bundle} with "
            f"{','.join(made) or 'none'}; leave out --tta to keep it, or retrain with it"
        )
    if sequence:
        _search_sequence(files, sequence)
    if not read_card(files.bundle).operating_points:
        progress.say("calibrate")
        calibrate(files.root)
    if read_card(files.bundle).test is None:
        progress.say("evaluate: opening the test patients")
        evaluate(files.root)
    progress.say("report")
    return report(files.root)


def _search_sequence(files: SearchFiles, trials: int) -> None:
    """Unless the bundle has a sequence model, can have none, or its test patients were looked at without one."""
    from ich_ray.bundle.card_file import read_card
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.refit.sequence import sequence
    from ich_ray.refit.sequence_conditions import drop_outdated, why_skipped

    card = read_card(files.bundle)
    if card.sequence is not None:
        return
    if card.test is not None:
        progress.say(
            "sequence: left out, the test patients were opened for the bundle without; `ich-ray sequence` adds it, and "
            "evaluating that opens them again"
        )
        return
    found = open_search(files.root)
    try:
        why_skipped(found, PreparedDataset.of_search(found))
    except ConfigError as error:  # nobody asked for this stage by its name
        progress.say(f"sequence: left out, {error}")
        return
    progress.say("sequence")
    drop_outdated(found)
    if there := files.sequence.search.exists():
        trials = max(trials, open_search(files.sequence.root).record.wanted)
    sequence(files.root, trials=trials, resume=there)


def _views_of(trial: TrialResult, views: Sequence[TtaView]) -> tuple[TtaView, ...]:
    """Those that a trial can be shown: which one is chosen nobody knew when they were asked for."""
    if "depth_flip" not in views or trial.parameters.get("neighbors"):
        return tuple(views)
    progress.say(f"--tta depth_flip: left out, trial {trial.number} sees no neighbors")
    return tuple(view for view in views if view != "depth_flip")


def _retrained(files: SearchFiles) -> int | None:
    """The trial that the bundle was trained with; None where there is no bundle, or no record of it."""
    from ich_ray.bundle.card_file import has_card
    from ich_ray.refit.retrain_record import Retraining

    if not has_card(files.bundle) or not files.retraining.exists():
        return None
    return read_record(files.retraining, Retraining, "remove the file and run again").trial
