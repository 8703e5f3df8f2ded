"""What `--target` and `--patience` save on the computed problems, and what they cost.

Ours with 4 slots, up to `--whole` full trainings; whenever `--every` more trials have ended, each rule is asked as the
driver of a search asks it. Saved are the images that the search would have shown after the end; the price is the regret
of the completed trial with the best report then, less that at the end of all images. A target is a share of the
problem's best value; `naive` ends a search at the first completed trial whose best report reaches it. Intervals are
95 % of paired bootstraps over problems.

    python benchmarks/early_ends.py [--seeds 24] [--first 0] [--whole 40] [--noise 0.02] [--every 4] [--workers 1]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.efficiency.computed import IMAGES, Landscape
from benchmarks.efficiency.course import course
from benchmarks.efficiency.methods import Ours
from ich_ray.search import early_end
from ich_ray.search import ledger as ledgers
from ich_ray.search.early_end import EarlyEnd, Patience, end_of
from ich_ray.search.value_model import ValueModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ich_ray.trial_records import TrialResult

SHARES = (0.9, 0.95)
PATIENCE = (Patience(20, "trials"), Patience(40, "trials"), Patience(80, "trials"), Patience(10 * IMAGES, "images"))
DRAWS = 4000


class Ended(NamedTuple):
    """Where a rule ended a search, or all images did.

    Attributes:
        images: shown, in full trainings.
        regret: of the completed trial with the best report.
        best: the highest value that a completed trial is worth, as a share of the problem's best.
        early: whether the rule did.
    """

    images: float
    regret: float
    best: float
    early: bool


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory."""


def _naive(target: float, trials: Sequence[TrialResult]) -> bool:
    return any(trial.state == "completed" and (trial.value or 0.0) >= target for trial in trials)


def _rules(on: Landscape) -> dict[str, Callable[[Sequence[TrialResult]], bool]]:
    def ends(early: EarlyEnd, trials: Sequence[TrialResult]) -> bool:
        return end_of(on.space, early, trials) is not None

    rules: dict[str, Callable[[Sequence[TrialResult]], bool]] = {}
    for share in SHARES:
        rules[f"target {share:g} of the best"] = partial(ends, EarlyEnd(target=share * on.best))
        rules[f"target {share:g}, naive"] = partial(_naive, share * on.best)
    for patience in PATIENCE:
        told = "10 full trainings" if patience.unit == "images" else str(patience)
        rules[f"patience {told}"] = partial(ends, EarlyEnd(patience=patience))
    return rules


def ended(seed: int, whole: float, noise: float, every: int) -> dict[str, Ended]:
    """Where each rule ends the search of one problem; under `all images`, where none does."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    on = Landscape(seed, noise)
    rules, found = _rules(on), dict[str, Ended]()
    models: dict[int, ValueModel] = {}

    def here(images: int, trials: Sequence[TrialResult], early: bool) -> Ended:
        completed = [trial for trial in trials if trial.state == "completed"]
        regrets = [on.regret(trial.parameters) for trial in completed]
        chosen = max(range(len(completed)), key=lambda index: completed[index].value or 0.0)
        return Ended(images / IMAGES, regrets[chosen], 1 - min(regrets) / on.best, early)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ledgers, "write_bytes", _unwritten):
        method = Ours(on.space, seed, Path(folder) / "s", 4)
        looked = 0
        for so_far, _ in course(method, on, seed):
            trials = [*method.ledger.trials.values()]
            over = so_far.images >= whole * IMAGES
            count = sum(trial.ended is not None for trial in trials)
            if count >= looked + every and so_far.complete and not over:
                looked = count
                models.clear()

                def model(_: object, told: Sequence[TrialResult]) -> ValueModel:
                    return models.get(0) or models.setdefault(0, ValueModel(on.space, told))

                with mock.patch.object(early_end, "ValueModel", model):
                    for name, rule in rules.items():
                        if name not in found and rule(trials):
                            found[name] = here(so_far.images, trials, early=True)
            if over:
                found["all images"] = here(so_far.images, trials, early=False)
                break
    return {name: found.get(name, found["all images"]) for name in ("all images", *rules)}


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean, with its interval over problems."""
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(np.asarray(values)[drawn].mean(axis=1), [2.5, 97.5])
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("seeds", 24), ("first", 0), ("every", 4), ("workers", 1)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    for flag, real in (("whole", 40.0), ("noise", 0.02)):
        parser.add_argument(f"--{flag}", type=float, default=real)
    asked = parser.parse_args()
    one = partial(ended, whole=asked.whole, noise=asked.noise, every=asked.every)
    problems = range(asked.first, asked.first + asked.seeds)
    found: list[dict[str, Ended]] = []
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        for number, result in enumerate(pool.map(one, problems)):
            found.append(result)
            print(f"problem {asked.first + number} done", file=sys.stderr, flush=True)
    print(f"problems {asked.first} to {asked.first + asked.seeds - 1}, noise {asked.noise:g}")
    print(
        "rule | ended early | full trainings | saved | regret | more than at the end | best value is below the target"
    )
    for name in found[0]:
        ends, last = [one[name] for one in found], [one["all images"] for one in found]
        saved = _mean([1 - one.images / end.images for one, end in zip(ends, last, strict=True)], 2)
        more = _mean([one.regret - end.regret for one, end in zip(ends, last, strict=True)], 4)
        early = [one for one in ends if one.early]
        share = float(name.split()[1].rstrip(",")) if name.startswith("target") else 0.0
        missed = f"{sum(one.best < share for one in early)} of {len(early)}" if share else ""
        print(
            f"{name} | {len(early)} of {len(ends)} | {np.mean([one.images for one in ends]):.1f} | {saved} | "
            f"{np.mean([one.regret for one in ends]):.4f} | {more} | {missed}"
        )


if __name__ == "__main__":
    main()
