"""Every contestant on every problem: searches until they reach 95 % of the best, kept one a line, and what they say."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import optuna

from benchmarks.efficiency.computed import Landscape
from benchmarks.efficiency.course import course
from benchmarks.efficiency.paired import chance_of_more, holm, ratio_of_sums
from benchmarks.efficiency.replay import Table
from benchmarks.efficiency.rivals import CONTESTANTS
from ich_ray.search import ledger as ledgers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks.efficiency.course import Method

    Contestants = Mapping[str, Callable[..., Method]]


@dataclass(frozen=True)
class Key:
    """A search: its problem, the contestant and the number of its search there."""

    kind: str
    problem: int
    slots: int
    contestant: str
    search: int


@dataclass(frozen=True)
class Needed:
    """What a search needed to reach 95 % of the best, or what it had used when it was given up.

    Attributes:
        images: in trainings of the whole budget, as `seconds` and `cost`, those of the fastest network.
    """

    key: Key
    images: float
    seconds: float
    cost: float
    reached: bool


def searched(
    key: Key, noise: float, at_most: float, by: str = "images", contestants: Contestants = CONTESTANTS
) -> Needed:
    """One search; it is given up after images, or by another measure, of `at_most` whole trainings."""
    on = Table(key.problem) if key.kind == "curves" else Landscape(key.problem, noise, key.kind)  # type: ignore[arg-type]
    whole, seed = on.space.budget.images, key.problem + 10**6 * key.search
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ledgers, "write_bytes", _unwritten):
        method = contestants[key.contestant](on.space, seed, Path(folder) / "s", key.slots)
        for so_far, training in course(method, on, seed):
            reached = training.value >= 0.95 * on.best
            if reached or getattr(so_far, by) >= at_most * whole:
                return Needed(key, so_far.images / whole, so_far.seconds / whole, so_far.cost / whole, reached)
    raise AssertionError


def search_all(
    keys: Iterable[Key],
    noise: float,
    at_most: float,
    keep: Path,
    by: str = "images",
    contestants: Contestants = CONTESTANTS,
) -> None:
    """Whatever is not there yet, in this order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    there = {one.key for one in kept(keep)}
    with keep.open("a", buffering=1) as file:
        for key in keys:
            if key not in there:
                file.write(json.dumps(asdict(searched(key, noise, at_most, by, contestants))) + "\n")


def kept(file: Path) -> list[Needed]:
    if not file.exists():
        return []
    told = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Needed(**{**one, "key": Key(**one["key"])}) for one in told]


def keys(
    kind: str, problems: int, searches: Sequence[int], slots: Sequence[int], contestants: Sequence[str]
) -> list[Key]:
    """One search of everything first, then the next, so that what is there at any time is a whole smaller contest."""
    return [
        Key(kind, problem, at_a_time, contestant, search)
        for search in searches
        for at_a_time in slots
        for problem in range(problems)
        for contestant in contestants
    ]


Amounts = dict[tuple[int, str], dict[int, dict[int, float]]]  # by slots, contestant, problem and search


def print_contest(found: Iterable[Needed], at_most: float, by: str, given_up_by: str = "images") -> None:
    """A table for each number of slots, ours first, then who comes nearest; pairs are searches that both have done."""
    amounts: Amounts = defaultdict(lambda: defaultdict(dict))
    missed: dict[tuple[int, str], int] = defaultdict(int)
    for one in found:
        never = not one.reached or getattr(one, given_up_by) > at_most
        place = amounts[one.key.slots, one.key.contestant][one.key.problem]
        place[one.key.search] = min(getattr(one, by), at_most if by == given_up_by else math.inf)
        missed[one.key.slots, one.key.contestant] += never
    chances = _chances(amounts)
    for slots in sorted({slots for slots, _ in amounts}):
        print(f"\n{slots} slots | problems, searches | {by}, mean | never | theirs / ours | not excluded | Holm p")
        rows = [_row(amounts, slots, name) for there, name in amounts if there == slots]
        for name, pairs, mean, ratio in sorted(rows, key=lambda row: row[3][0]):
            told = f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) | {1 / ratio[1]:.2f}" if name != "ours" else "|"
            more = f"{chances[slots, name]:.3f}" if name != "ours" else ""
            print(f"{name} | {pairs} | {mean:.1f} | {missed[slots, name]} | {told} | {more}")
    _print_cells(amounts)


def _pairs(amounts: Amounts, slots: int, name: str) -> tuple[list[list[float]], list[list[float]]]:
    ours, theirs = amounts[slots, "ours"], amounts[slots, name]
    both = {problem: sorted(ours[problem].keys() & theirs[problem].keys()) for problem in ours.keys() & theirs.keys()}
    chosen = [(problem, searches) for problem, searches in sorted(both.items()) if searches]
    return (
        [[ours[problem][search] for search in searches] for problem, searches in chosen],
        [[theirs[problem][search] for search in searches] for problem, searches in chosen],
    )


def _row(amounts: Amounts, slots: int, name: str) -> tuple[str, str, float, tuple[float, float, float]]:
    ours, theirs = _pairs(amounts, slots, name)
    searches = f"{len(theirs)}, {sum(map(len, theirs))}"
    return name, searches, statistics.fmean(map(statistics.fmean, theirs)), ratio_of_sums(theirs, ours)


def _chances(amounts: Amounts) -> dict[object, float]:
    """That ours does not need more than each of the others, over problems, corrected for all of these tests."""
    pairs = {key: _pairs(amounts, *key) for key in list(amounts) if key[1] != "ours"}
    means = {
        key: ([statistics.fmean(one) for one in ours], [statistics.fmean(one) for one in theirs])
        for key, (ours, theirs) in pairs.items()
    }
    return holm({key: chance_of_more(*both) for key, both in means.items()})


def _print_cells(amounts: Amounts) -> None:
    """Problem by problem against stock, paired over searches, corrected over all problems and numbers of slots."""
    chances = {}
    for slots in sorted({slots for slots, _ in amounts}):
        for number, (ours, theirs) in enumerate(zip(*_pairs(amounts, slots, "stock"), strict=True)):
            if len(ours) > 1:
                chances[slots, number] = chance_of_more(ours, theirs)
    if chances:
        corrected = holm(chances)
        print(
            f"\nours against stock, one problem and number of slots at a time: {len(chances)} tests, smallest p "
            f"{min(chances.values()):.4f}; needs more after Holm, 5 % in all: "
            f"{sum(one < 0.05 for one in corrected.values())}"
        )


def _unwritten(path: Path, content: bytes) -> None:
    """A ledger that stays in memory; a Mock would remember every call."""
