"""Several readers of one label: their majority, and how far they agree.

Votes are int8 `[rows, readers]`: 1, 0, or MISSING where a reader said nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.dataset import ReaderAgreement
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["MISSING", "majority", "reader_agreement", "withhold_disputed"]

MISSING = -1


def majority(votes: NDArray[np.int8]) -> NDArray[np.int8]:
    """What most readers say of each row; MISSING at a tie, and where nobody says anything."""
    lead = (votes == 1).sum(axis=1) - (votes == 0).sum(axis=1)
    return np.where(lead > 0, 1, np.where(lead < 0, 0, MISSING)).astype(np.int8)


def withhold_disputed(answers: dict[str, NDArray[np.int8]], votes: Mapping[str, NDArray[np.int8]]) -> dict[str, int]:
    """Take subtypes for unknown that a reader saw and no majority did, where a majority saw haemorrhage.

    Two of three readers see blood, one as subdural and one as epidural: by majority it has no kind at all, as if the
    labels contradicted each other. `answers` are changed; returns how many rows of each subtype are.
    """
    if "any" not in votes:
        return {}
    kinds = [answers[name] == 1 for name in SUBTYPES if name in answers]
    unexplained = (answers["any"] == 1) & ~np.any(kinds, axis=0)
    disputed: dict[str, int] = {}
    for name in [name for name in SUBTYPES if name in votes]:
        here = unexplained & (votes[name] == 1).any(axis=1) & (answers[name] == 0)
        answers[name] = np.where(here, MISSING, answers[name]).astype(np.int8)
        disputed[name] = int(here.sum())
    return disputed


def reader_agreement(label: str, votes: NDArray[np.int8], disputed: int = 0) -> ReaderAgreement:
    """How far readers agree: of all pairs of answers to a row the share that is equal, and Fleiss' kappa.

    Kappa is (P - E) / (1 - E), with P the mean share of agreeing pairs of a row and E the sum of the squared shares of
    both answers, what chance would give (J. L. Fleiss, Psychological Bulletin 76, 378-382, 1971). It is of rows that
    all readers answered, and undefined where they always say the same. Of two readers it is Scott's pi.
    """
    ones, zeros = (votes == 1).sum(axis=1), (votes == 0).sum(axis=1)
    answered, equal = ones + zeros, ones * (ones - 1) + zeros * (zeros - 1)
    pairs = (answered * (answered - 1)).sum()
    readers = votes.shape[1]
    whole, kappa = answered == readers, None
    if whole.any():
        share = ones[whole].mean() / readers
        observed, chance = equal[whole].mean() / (readers * (readers - 1)), share**2 + (1 - share) ** 2
        kappa = None if chance == 1 else float((observed - chance) / (1 - chance))
    return ReaderAgreement(
        label=label,
        readers=readers,
        rows=int((answered > 1).sum()),
        pairs_agree=float(equal.sum() / pairs) if pairs else None,
        kappa=kappa,
        ties=int(((ones == zeros) & (ones > 0)).sum()),
        disputed=disputed,
    )
