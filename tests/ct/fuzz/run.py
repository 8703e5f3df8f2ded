"""Numbered changes of every base, judged; the same number and seed make the same file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from tests.ct.fuzz.bases import BASES
from tests.ct.fuzz.changes import Base, changed
from tests.ct.fuzz.judging import judge

__all__ = ["Found", "base_of", "changed_file", "run"]


@dataclass(frozen=True)
class Found:
    """A file that was read otherwise than by anybody else, without a rule that says why."""

    name: str
    number: int
    data: bytes
    unjudged: tuple[str, ...]


@cache
def base_of(name: str) -> Base:
    return Base.of(BASES[name]())


def changed_file(number: int, seed: int) -> tuple[str, bytes]:
    """Name of the base, and the changed file."""
    name = list(BASES)[number % len(BASES)]
    return name, changed(base_of(name), random.Random(f"{seed} {number}"))


def run(numbers: Iterable[int], seed: int) -> tuple[Counter[str], list[Found]]:
    """How many files there are of each kind, and those without a rule."""
    kinds, found = Counter[str](), []
    for number in numbers:
        name, data = changed_file(number, seed)
        verdict = judge(data, base_of(name))
        kinds[verdict.kind] += 1
        if verdict.unjudged:
            found.append(Found(name, number, data, verdict.unjudged))
    return kinds, found
