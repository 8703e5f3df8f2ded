"""Print calibrations and evaluations on stdout: a few lines for people, JSON for programs.

Knows records as their files hold them, and nothing of verbs or flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ich_ray.terminal import print_json, print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["plain", "print_calibration", "print_evaluation", "print_test_figures"]

_SHARES = ("sensitivity", "specificity", "ppv")


def print_calibration(found: Mapping[str, Any], where: str, as_json: bool) -> None:
    """On whom probabilities and thresholds were fitted, and what each threshold gives there."""
    if as_json:
        print_json(found)
        return
    studies = found.get("studies") if "slices" in found else found
    if "slices" in found:
        _print_fit(
            f"{found['slices']:,} slices of {found['patients']:,} patients, {found['positives']:,} positive", found
        )
    if any_of := (studies or {}).get("labels", {}).get("any"):
        positive = f"{any_of['positives']:,} positive of {any_of['patients']:,} patients"
        _print_fit(f"{any_of['studies']:,} studies, {positive}", any_of)
    print_line(f"written  {where}")


def _print_fit(cases: str, fit: Mapping[str, Any]) -> None:
    losses = f"log loss {plain(fit['log_loss_before'], 3)} before, {plain(fit['log_loss_after'], 3)} after"
    print_line(f"calibrated on {cases}: {losses}")
    rows = [
        (name, point.get("rule", ""), plain(point["threshold"], 3), *(plain(point[share], 3) for share in _SHARES))
        for name, point in fit["operating_points"].items()
    ]
    if rows:
        print_table(("operating point", "rule", "probability >=", *_SHARES), rows, left=("operating point", "rule"))
    for note in fit.get("notes", ()):
        print_line(f"note: {note}")


def print_evaluation(found: Mapping[str, Any], where: str, as_json: bool) -> None:
    """What the bundle is worth on test patients, how often they were opened, and where all figures stand."""
    if as_json:
        print_json(found)
        return
    print_test_figures(found)
    print_line(f"opened            {found['opened']} so far")
    print_line(f"all figures       {where}")


def print_test_figures(test: Mapping[str, Any]) -> None:
    """The main figures of an evaluation, with their intervals, and what a reader of them must know.

    Where labels are of studies alone there are none of slices.
    """
    _print_points(test.get("operating_points", {}), (*_SHARES, "f2"), "operating point", "on test patients")
    if precision := test.get("metrics", {}).get("average_precision"):
        print_line(f"                  average_precision {_interval(precision)}")
    _print_studies(test.get("studies"))
    for note in test.get("notes", []):
        print_line(f"note              {note}")


def _print_studies(studies: Mapping[str, Any] | None) -> None:
    """Figures of test studies, where there are any, after those of slices."""
    if not studies:
        return
    _print_points(studies["operating_points"], _SHARES, "by study", "on test studies")
    precision, area = (_interval(studies["metrics"][name]) for name in ("average_precision", "roc_auc"))
    print_line(f"by study          {studies['cases']} studies: average_precision {precision}, roc_auc {area}")
    for note in studies.get("notes", []):
        print_line(f"note              by study: {note}")


def _print_points(points: Mapping[str, Any], metrics: Sequence[str], of: str, on: str) -> None:
    for name, point in points.items():
        figures = ", ".join(f"{metric} {_interval(point[metric])}" for metric in metrics)
        print_line(f"{of:<16}  {name}: probability >= {point['threshold']:.3f}")
        print_line(f"{on:<16}  {figures}")


def plain(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None:
        return "undefined"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
