"""The table of faults by kind: planted, survived, what they cost, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scipy.stats import beta

from benchmarks.chaos.faults import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEAD = ("fault", "planted", "ended an attempt", "survived", "images lost, most / mean", "seconds, median / most")


def upper_bound(lost: int, planted: int, confidence: float = 0.95) -> float:
    """The exact (Clopper-Pearson) one-sided bound of the chance that a fault loses something; 1 without any."""
    return 1.0 if lost >= planted else float(beta.ppf(confidence, lost + 1, planted - lost))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """A row for each kind and one for all, and the bounds; the seconds are those until the search went on."""
    rows = [HEAD, *(_row(kind, [one for one in lines if one["kind"] == kind]) for kind in KINDS), _row("all", lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = [_aligned(row, widths) for row in rows]
    for what, some in (("faults", lines), ("faults that ended an attempt", [one for one in lines if one["trials"]])):
        lost = sum(not one["survived"] for one in some)
        bound = upper_bound(lost, len(some))
        told.append(f"{lost} of {len(some)} {what} lost something: with 95 % confidence below {100 * bound:.1f} %")
    return "\n".join(told)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def _row(kind: str, lines: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    lines = [*lines]
    hit = [one for one in lines if one["trials"]]
    images = [count for one in lines for count in one["images"]]
    again = sorted(one["again_s"] for one in lines if one["trials"] or one["kind"] == "driver killed")
    return (
        kind,
        str(len(lines)),
        str(len(hit)),
        str(sum(one["survived"] for one in lines)),
        f"{max(images)} / {sum(images) / len(images):.0f}" if images else "-",
        f"{again[len(again) // 2]:.0f} / {again[-1]:.0f}" if again else "-",
    )
