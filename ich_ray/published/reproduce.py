"""Reproduce both published systems and ours on the same patients, on one page.

Prepares the images three times (three windows by patient; one wide window by slice, as report B split them, and by
patient), runs each system's own procedure and then the same calibration and the same single opening of the test
patients for all. Finished stages are skipped, so it may be interrupted and started again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import yaml

from ich_ray import progress
from ich_ray.errors import ConfigError
from ich_ray.pipeline import finish
from ich_ray.published.fixed_threshold import QuickRow, quick_evaluation
from ich_ray.published.full_size import planned_stages
from ich_ray.published.probe import MINIBATCHES, probe
from ich_ray.published.reproduction import Reproduction
from ich_ray.published.sampled_retraining import sampled_course
from ich_ray.published.scale import RAW_WINDOW, SCALES, Scale, ours, report_a, report_b, retrained_slices
from ich_ray.published.system_results import System, measured
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.storage import (
    Location,
    SearchFiles,
    locate,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.vocabulary import Split

__all__ = ["reproduce"]


def reproduce(
    images: Location | None,
    labels: Location | None,
    out: Location,
    *,
    scale: str = "small",
    weights: str | None = None,
    seed: int = 0,
    limit_rejected: float = 0.05,
    address: str | None = None,
) -> UPath:
    """Run both reports and ours, and write OUT/reproduction.html.

    Args:
        images: a folder of DICOM files; synthetic patients if not given.
        labels: its label table; given with `images`.
        out: receives everything; run again after an interruption.
        scale: `full` as they were, `small` in minutes on two cores.
        weights: of report A's ResNet50: `imagenet`, a safetensors file, or `none`; `imagenet` at full size and `none`
            at small if not given.
        seed: of roles, draws and weights.
        limit_rejected: the share of the files that may be rejected.
        address: a Ray cluster; this machine if not given.

    Raises:
        ConfigError: one of images and labels alone, an unknown scale, or weights that cannot be had.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale: one of {', '.join(SCALES)} must be given, got {scale!r}")
    if (images is None) != (labels is None):
        raise ConfigError("--labels: must be given with a folder of images, and only then; give both or none")
    started, size = time.monotonic(), SCALES[scale]
    wanted = weights or size.weights
    from ich_ray.model.pretrained_weights import check_weights

    check_weights("resnet50", wanted)
    root = locate(out)
    source = (images, labels) if images is not None and labels is not None else _phantom(root, size, seed)
    with connected(address):
        work = _Work(root, size, wanted, seed, source, limit_rejected)
        probed, trials_a = work.report_a()
        candidates, chosen, folds = work.report_b()
        work.ours()
        systems = work.systems()
    progress.say("rates at full size")
    done = Reproduction(
        scale=size.name,
        synthetic=images is None,
        weights=wanted,
        train=work.train,
        slices=len(work.windows),
        patients=sum(role.patients for role in work.windows.manifest.roles.values()),
        probed=probed,
        trials_a=tuple(row.figures() for row in trials_a),
        candidates=tuple(row.figures() for row in candidates),
        chosen=chosen,
        folds=tuple(row.figures() for row in folds),
        systems=systems,
        planned=tuple(planned_stages()),
        seconds=time.monotonic() - started,
        created=time.time(),
    )
    from ich_ray.published.comparison import page

    write_json(root / "reproduction.json", done.model_dump(mode="json"))
    write_bytes(root / "reproduction.html", page(done).encode())
    return root / "reproduction.html"


def _phantom(root: UPath, scale: Scale, seed: int) -> tuple[UPath, UPath]:
    from ich_ray.ct.phantom import write_phantom

    images, labels = root / "dicom" / "stage_2_train", root / "dicom" / "stage_2_train.csv"
    if not labels.exists():  # the phantom writes it last
        progress.say(f"phantom: {scale.patients} synthetic patients as DICOM below {root}")
        write_phantom(root / "dicom", patients=scale.patients, seed=seed, size=scale.phantom_px)
    return images, labels


class _Work:
    """The stages of a reproduction; each leaves files and is skipped when they are there."""

    def __init__(
        self,
        root: UPath,
        scale: Scale,
        weights: str,
        seed: int,
        source: tuple[Location, Location],
        limit_rejected: float,
    ) -> None:
        self.root, self.scale, self.weights, self.seed = root, scale, weights, seed
        self.source, self.limit_rejected = source, limit_rejected
        self.windows = self._windowed("windows", scale.size_a)
        same = scale.size_ours == scale.size_a
        self.finer = self.windows if same else self._windowed("windows-ours", scale.size_ours)
        self.by_slice = self._prepared("raw-by-slice", scale.size_b, RAW_WINDOW, "slice")
        self.by_patient = self._prepared("raw-by-patient", scale.size_b, RAW_WINDOW, "patient")
        roles = (dataset.manifest.roles["train"] for dataset in (self.windows, self.by_slice, self.by_patient))
        self.train = min(role.slices for role in roles)

    def _prepared(self, name: str, size: int, windows: str, split: Split) -> PreparedDataset:
        from ich_ray.data.prepare.run import prepare

        progress.say(f"prepare: {name}")
        keys: dict[str, Any] = {"seed": self.seed, "limit_rejected": self.limit_rejected}
        return prepare(*self.source, self.root / "datasets" / name, size=size, windows=windows, split=split, **keys)

    def _windowed(self, name: str, size: int) -> PreparedDataset:
        return self._prepared(name, size, "brain,subdural,bone", "patient")

    def _space(self, name: str, source: dict[str, Any]) -> UPath:
        path = self.root / "spaces" / f"{name}.yaml"
        write_bytes(path, yaml.safe_dump(source, sort_keys=False, default_flow_style=None, width=120).encode())
        return path

    def _searched(
        self, name: str, dataset: PreparedDataset, space: UPath, trials: int | None = None, *, share: bool = False
    ) -> SearchFiles:
        from ich_ray.search.run import run_search

        files = SearchFiles(self.root / name)
        progress.say(f"search: {name}")
        keys: dict[str, Any] = {"seed": self.seed, "resume": files.search.exists(), "share_trunks": share}
        run_search(dataset.files.root, space, files.root, trials=trials, **keys)
        return files

    def report_a(self) -> tuple[tuple[int, int], list[QuickRow]]:
        """Its probe, then a search among the winners."""
        grid = self._space("report_a", report_a(self.scale, self.weights, self.train))
        folder = self.root / "report-a-probe"
        progress.say("probe: report A")
        done = probe(
            self.windows.files.root, grid, folder, minibatches=MINIBATCHES, passes=self.scale.passes, seed=self.seed
        )
        trials, share = max(len(done.winners()), 1), self.scale.name == "small"  # at full size 118 GB
        files = self._searched("report-a", self.windows, folder / "space.yaml", trials, share=share)
        finish(files)
        return (len(done.candidates), done.failed), quick_evaluation(open_search(files.root))

    def report_b(self) -> tuple[list[QuickRow], int, list[QuickRow]]:
        """Its ten candidates, five folds of the best, and that once more on the patients of another split."""
        from ich_ray.refit.confirm import confirm

        source = report_b(self.scale, self.train)
        files = self._searched("report-b-by-slice", self.by_slice, self._space("report_b", source))
        progress.say("confirm: report B on five folds")
        chosen = confirm(files.root, top=1, folds=5).chosen
        self._retrained(files)
        again = {**source, "candidates": [source["candidates"][chosen]]}
        self._retrained(self._searched("report-b-by-patient", self.by_patient, self._space("report_b_best", again)))
        folds = quick_evaluation(open_search(files.confirming("folds").root))
        return quick_evaluation(open_search(files.root)), chosen, folds

    def _retrained(self, files: SearchFiles) -> None:
        slices = retrained_slices(self.scale, self.train)
        finish(files, course=sampled_course(files.root, slices=slices, epochs=self.scale.epochs))

    def ours(self) -> None:
        finish(self._searched("ours", self.finer, self._space("ours", ours(self.scale)), self.scale.trials))

    def systems(self) -> tuple[System, ...]:
        names = {
            "report-a": "report A, again",
            "report-b-by-slice": "report B, again, split by slice",
            "report-b-by-patient": "report B, again, split by patient",
            "ours": "ours",
        }
        return tuple(measured(name, self.root / folder) for folder, name in names.items())
