"""What knowledge gains a search, and what it costs where it is wrong: priors, earlier searches, constraints.

Ours as it runs, on the computed problems of search_efficiency.py, whose optimum is known: images to 95 % of the best
AP, with and without what is known, of the same problem and the same seeds. A ratio above 1 is a gain: without it, a
search needs more images. Each interval is of the ratio of the sums, 95 %, by bootstrap over problems.

`prior`: of learning rate (a decade wide), dropout, decay and optimizer. Good: the optimum. Off: half a decade beside
the best rate. Wrong: two decades beside it, far from the best dropout and decay, another optimizer.
`teachers`: one earlier search of 100 trials, or two. The same: of the same problem. 0.2 lower: with what it reports
that much lower, as on a harder dataset. Another: of a problem whose optimum lies elsewhere. Reversed: of the same
problem, whose worst trials it calls the best ones. By three rules: ours; ours without the random ones among the first
draws; and trials of other searches count like own ones.
`constraints`: images with a limit against without. Right: what exceeds it is worse (the plain CNN, half of the draws);
to 95 % of the best AP. Needed: at most 5,000,000 weights, so that only the plain CNN may be drawn; to 95 % of the best
AP that keeps it, plain CNNs alone count. Wrong: the same limit, which nobody needed; to that AP, all networks count,
and what is left of the best AP.

    python benchmarks/knowledge.py {prior,teachers,constraints} [--problems 40] [--searches 4] [--noise 0.02]
                                   [--slots 4]
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import warnings
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.efficiency.computed import IMAGES, SOURCE, Landscape
from benchmarks.efficiency.course import course
from benchmarks.efficiency.methods import Ours
from ich_ray.search import ledger as ledgers
from ich_ray.search.optuna_adapter import as_optuna
from ich_ray.search.plan.constraint_check import ConstraintCheck
from ich_ray.search.space.constraints import Refusal
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.tune import sampler
from ich_ray.search.tune.sampler import LedgerSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.efficiency.course import Training
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.space.constraints import Refuses
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import TrialResult

AT_MOST = 100 * IMAGES
TAUGHT = 100  # trials
BEST_DROPOUT, BEST_DECAY = 0.35, 0.01


class Informed(Ours):
    """Ours with trials of earlier searches, or with a constraint."""

    def __init__(self, space: SearchSpace, seed: int, folder: Path, slots: int, **knowledge: Any) -> None:
        super().__init__(space, seed, folder, slots)
        if knowledge:
            self._sampler = LedgerSampler(
                space, self.ledger, wanted=10**6, concurrent=lambda: slots, out_of_time=lambda: False, **knowledge
            )

    def told(self, trials: Sequence[TrialResult], space: SearchSpace) -> Informed:
        """As if they were its own."""
        for trial in trials:
            self._sampler._study.add_trial(as_optuna(space, trial))
        return self

    def trials(self) -> list[TrialResult]:
        return [trial for _, trial in sorted(self.ledger.trials.items()) if trial.state != "running"]


def mean_images(
    value: float,
    begin: Callable[[int], Informed],
    on: Landscape,
    problem: int,
    searches: int,
    counts: Callable[[Training], bool] = lambda _: True,
) -> float:
    """Of some searches of one problem, each with other draws and other noise."""

    def images(seed: int) -> int:
        for so_far, training in course(begin(seed), on, seed):
            if (training.value >= value and counts(training)) or so_far.images >= AT_MOST:
                return so_far.images
        raise AssertionError

    return statistics.fmean(images(problem + 10**6 * search) for search in range(searches))


def believing(on: Landscape, off: float, dropout: float, decay: float, optimizer: str) -> SearchSpace:
    source = copy.deepcopy(SOURCE)
    told = source["parameters"]
    rate = min(max(10 ** (on._rate["adam"] + off), 1e-5), 0.1)
    told["learning_rate"] |= {"prior": rate, "width": "1 decade"}
    told["dropout"] |= {"prior": dropout, "width": 0.2}
    told["decay"] |= {"prior": decay, "width": "1 decade"}
    told["optimizer"] |= {"prior": optimizer, "weight": 0.6}
    return parse_space(source, "prior.yaml")


def prior(given: argparse.Namespace, folder: Callable[[], Path]) -> None:
    needed: dict[str, list[float]] = {}
    for problem in range(given.problems):
        on = Landscape(problem, given.noise)
        away = 2.0 if on._rate["adam"] < -3 else -2.0
        spaces = {
            "nothing": on.space,
            "good": believing(on, 0.0, BEST_DROPOUT, BEST_DECAY, "adam"),
            "off": believing(on, math.copysign(0.5, away), BEST_DROPOUT, BEST_DECAY, "adam"),
            "wrong": believing(on, away, 0.05, 0.08, "sgd"),
        }
        for name, space in spaces.items():

            def begin(seed: int, space: SearchSpace = space) -> Informed:
                return Informed(space, seed, folder(), given.slots)

            needed.setdefault(name, []).append(mean_images(0.95 * on.best, begin, on, problem, given.searches))
    print_ratios("prior", given, needed)


def taught(on: Landscape, seed: int, folder: Path, slots: int, shift: float = 0.0) -> list[TrialResult]:
    """The trials of an earlier search; with a shift as on a dataset on which all AP is so much lower."""
    method = Informed(on.space, seed, folder, slots)
    for so_far, _ in course(method, on, seed):
        if len(so_far.trainings) > TAUGHT:
            break
    return [_shifted(trial, lambda value: max(value - shift, 0.01)) for trial in method.trials()]


def _shifted(trial: TrialResult, change: Callable[[float], float]) -> TrialResult:
    reports = tuple(
        report.model_copy(update={"metrics": {name: change(value or 0.0) for name, value in report.metrics.items()}})
        for report in trial.reports
    )
    return trial.model_copy(update={"reports": reports})


def reversed_order(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """What the best reported, said by the worst, and so on: stage by stage, so that outcomes stay as they are."""
    best_first = sorted(trials, key=lambda trial: (trial.state == "completed", trial.images_seen, trial.value or 0.0))
    return [
        one.model_copy(update={"parameters": other.parameters})
        for one, other in zip(best_first, best_first[::-1], strict=True)
    ]


def teachers(given: argparse.Namespace, folder: Callable[[], Path]) -> None:
    needed: dict[str, list[float]] = {}
    for problem in range(given.problems):
        on, elsewhere = Landscape(problem, given.noise), Landscape(problem + 10**4, given.noise)
        alike = taught(on, problem + 10**5, folder(), given.slots)
        lower = [_shifted(trial, lambda value: max(value - 0.2, 0.01)) for trial in alike]
        other = taught(elsewhere, problem + 10**5, folder(), given.slots)
        wrong = reversed_order(alike)
        known: dict[str, list[list[TrialResult]]] = {
            "the same": [alike],
            "the same, 0.2 lower": [lower],
            "another": [other],
            "reversed": [wrong],
            "the same and reversed": [alike, wrong],
            "the same and another": [alike, other],
        }

        def images(rule: str, warm: list[list[TrialResult]]) -> float:
            own = [trial for trials in warm for trial in trials] if rule == "as own" else []
            keys = {"warm": warm} if warm and not own else {}

            def begin(seed: int) -> Informed:
                return Informed(on.space, seed, folder(), given.slots, **keys).told(own, on.space)  # noqa: B023

            looking_about = 0 if rule == "no random draws" else sampler._LOOKING_ABOUT
            with mock.patch.object(sampler, "_LOOKING_ABOUT", looking_about):
                return mean_images(0.95 * on.best, begin, on, problem, given.searches)  # noqa: B023

        needed.setdefault("nothing", []).append(images("", []))
        for name, warm in known.items():
            for rule in ("", ", no random draws", ", as own"):
                needed.setdefault(name + rule, []).append(images(rule.removeprefix(", "), warm))
        print(f"problem {problem}: { ({name: images[-1] for name, images in needed.items()}) }", file=sys.stderr)
    print_ratios("teachers", given, needed)


def constraints(given: argparse.Namespace, folder: Callable[[], Path]) -> None:
    space = parse_space({**SOURCE, "constraints": {"max_parameters": 5_000_000}}, "constraints.yaml")
    small = ConstraintCheck(space.constraints, (3, 32, 32), {})
    needed: dict[str, dict[str, list[float]]] = {"right": {}, "needed": {}, "wrong": {}}
    left: list[float] = []
    for problem in range(given.problems):
        on = Landscape(problem, given.noise)
        best = best_small(on)
        left.append(best / on.best)
        asked: dict[str, tuple[float, Callable[[Training], bool], Refuses]] = {
            "right": (on.best, lambda _: True, _worse_network),
            "needed": (best, _is_small, small),
            "wrong": (best, lambda _: True, small),
        }
        for what, (goal, counts, refuses) in asked.items():
            for name, keys in (("nothing", {}), ("with the limit", {"refuses": refuses})):

                def begin(seed: int, keys: dict[str, Any] = keys) -> Informed:
                    return Informed(space, seed, folder(), given.slots, **keys)

                images = mean_images(0.95 * goal, begin, on, problem, given.searches, counts)
                needed[what].setdefault(name, []).append(images)
        print(f"problem {problem}: {needed}", file=sys.stderr)
    for what, images_to in needed.items():
        print_ratios(f"constraints, {what}", given, images_to)
    low, middle, high = np.percentile(left, [0, 50, 100])
    print(f"  best AP that keeps it over the best AP: median {middle:.3f}, from {low:.3f} to {high:.3f}")


def _is_small(training: Training) -> bool:
    return bool(training.parameters["architecture"] == "plain_cnn")


def _worse_network(parameters: Hyperparameters) -> Refusal | None:
    """As a limit that the best ones keep and half of the draws do not."""
    return Refusal("max_parameters", 1.0) if parameters.architecture == "plain_cnn" else None


def best_small(on: Landscape) -> float:
    """The best AP of a plain CNN, by the same fine search as the landscape's own."""
    rates, dropouts = np.linspace(-1.0, 0.5, 61), np.linspace(0.0, 0.6, 61)
    fixed = {"architecture": "plain_cnn", "blocks": 3, "batch_size": 64, "optimizer": "adam", "decay": BEST_DECAY}
    return max(
        on.value({**fixed, "learning_rate": 10 ** (on._rate["adam"] + rate), "dropout": dropout}, IMAGES)
        for rate in rates
        for dropout in dropouts
    )


def print_ratios(what: str, given: argparse.Namespace, needed: Mapping[str, Sequence[float]]) -> None:
    print(
        f"{what}: images to 95 % of the best AP, problems 0 to {given.problems - 1}, each the mean of "
        f"{given.searches} searches (seeds problem + 10^6 search), noise {given.noise:g}, {given.slots} slots, at "
        f"most {AT_MOST // IMAGES} full trainings; nothing / known, of the sums [95 %]"
    )
    nothing = np.array(needed["nothing"], float)
    draws = np.random.default_rng(0).integers(len(nothing), size=(10_000, len(nothing)))
    for name, images in needed.items():
        own = np.array(images, float)
        ratios = nothing[draws].sum(1) / own[draws].sum(1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        missed = int((own >= AT_MOST).sum())
        print(
            f"  {name:40} {nothing.sum() / own.sum():5.2f} x [{low:.2f}, {high:.2f}], median "
            f"{np.median(own) / IMAGES:.1f} full trainings, more images in {int((own > nothing).sum())} of {len(own)}"
            + (f", {missed} never" if missed else "")
        )


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory; a Mock would remember every call."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = {"prior": prior, "teachers": teachers, "constraints": constraints}
    arguments.add_argument("what", choices=measured)
    arguments.add_argument("--problems", type=int, default=40)
    arguments.add_argument("--searches", type=int, default=4, help="of each problem, of which the mean counts")
    arguments.add_argument("--noise", type=float, default=0.02)
    arguments.add_argument("--slots", type=int, default=4, help="trials at a time")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    made = count()
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(ledgers, "write_bytes", _unwritten):
        measured[given.what](given, lambda: Path(temporary) / str(next(made)))


if __name__ == "__main__":
    main()
