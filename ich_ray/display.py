"""What the command line prints of a dataset, a search and a run: tables for people, JSON for programs, on stdout.

Knows records and nothing of verbs or flags.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ich_ray.data.identities import identities_file
from ich_ray.search.table import said_detail, said_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.data.dataset import DatasetManifest
    from ich_ray.data.identities import FileIdentity
    from ich_ray.final.confirm import Confirmation
    from ich_ray.pipeline import RunResult
    from ich_ray.recipes.probe import Probe
    from ich_ray.recipes.quick import QuickRow
    from ich_ray.results import SearchResult
    from ich_ray.search.audit import Audit
    from ich_ray.search.outlook import Outlook

__all__ = [
    "print_audit",
    "print_confirmation",
    "print_dataset",
    "print_identities",
    "print_outlook",
    "print_probe",
    "print_quick",
    "print_run",
    "print_search",
]

_TABLE_ROWS = 10
_TEXT = {"state", "role", "parameters", "reason", "slice", "uid", "file", "path", "detail"}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT else "right")
    return table


def _show(table: Table) -> None:
    # A pipe has no width, and rich's 80 columns would cut the parameters of a trial short.
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def print_dataset(manifest: DatasetManifest, root: str) -> None:
    """What `prepare` made: files, reasons of rejection, roles."""
    counts = f"{manifest.accepted} accepted, {manifest.rejected} rejected, {manifest.duplicate} duplicate"
    print(f"{manifest.listed} files: {counts}, {manifest.excluded} excluded  {root}")
    if manifest.reasons:
        reasons = _table("reason", "files")
        for reason, files in sorted(manifest.reasons.items(), key=lambda item: (-item[1], item[0])):
            reasons.add_row(reason, str(files))
        _show(reasons)
    roles = _table("role", "slices", "patients", "positives", "prevalence")
    for role, count in manifest.roles.items():
        share = f"{count.positives / count.slices:.3f}" if count.slices else "-"
        roles.add_row(role, str(count.slices), str(count.patients), str(count.positives), share)
    _show(roles)
    for note in manifest.notes:
        print(note)
    if manifest.clear:
        print("slice ids and file names stand in the clear: prepare again, into another folder, for pseudonyms")
        return
    if manifest.reasons:
        print(f"which files: ich-ray identify {root}")
    print(f"names behind the pseudonyms: {identities_file(manifest.identities)}")


def print_identities(rows: Sequence[FileIdentity], asked: bool, as_json: bool) -> None:
    """The files behind pseudonyms that were asked for; or, file by file, why it was not accepted."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif asked:
        table = _table("slice", "uid", "file", "path", "reason")
        for row in rows:
            table.add_row(row.slice_id, row.uid, row.file, row.path, row.reason or "accepted")
        _show(table)
    elif rows:
        table = _table("reason", "path", "detail")
        for row in rows:
            table.add_row(row.reason, row.path or f"label {row.uid}", row.detail)
        _show(table)
    else:
        print("every file was accepted")


def print_outlook(outlook: Outlook, as_json: bool) -> None:
    """What a search would do and take."""
    print(json.dumps(outlook.figures(), indent=1) if as_json else outlook)


def print_search(found: SearchResult, top: int | None, as_json: bool) -> None:
    """The best `top` trials of a search; by default ten as a table, all as JSON."""
    ranked = found.ranked()
    if as_json:
        trials = [{**trial.model_dump(mode="json"), "value": trial.value} for trial in ranked[:top]]
        print(json.dumps({"search": found.record.model_dump(mode="json"), "trials": trials}, indent=1))
        return
    if found.record.leak:
        print(found.record.leak)
    states = ", ".join(f"{found.count(state)} {state}" for state in ("completed", "pruned", "failed", "running"))
    print(f"{found.record.name}: {len(found.trials)} of {found.record.wanted} trials: {states}")
    table = _table("trial", "state", found.objective.metric, "images", "seconds", "parameters")
    for trial in ranked[: top or _TABLE_ROWS]:
        seconds = f"{trial.reports[-1].elapsed_s:.0f}" if trial.reports else "-"
        state = f"{trial.state} ({trial.reason})" if trial.reason else trial.state
        value, drawn = _plain(trial.value), said_parameters(trial.parameters)
        table.add_row(str(trial.number), state, value, str(trial.images_seen), seconds, drawn)
    _show(table)
    _print_failures(found)
    for setup, count in Counter(str(trial.setup) for trial in found.trials if trial.setup).most_common():
        print(f"{count} trials on {setup}")


def _print_failures(found: SearchResult) -> None:
    """A line for each way to fail, the commonest first, with one trial to look at."""
    ways: dict[str, list[int]] = {}
    for trial in found.trials:
        if trial.state == "failed":
            ways.setdefault(said_detail(trial), []).append(trial.number)
    commonest = sorted(ways.items(), key=lambda way: -len(way[1]))
    for why, numbers in commonest[:_TABLE_ROWS]:
        others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        print(f"trial {numbers[0]}{others} failed: {why}")
    if len(ways) > _TABLE_ROWS:
        print(f"{len(ways) - _TABLE_ROWS} more ways to fail; --json has all")


def print_probe(done: Probe, out: str, as_json: bool) -> None:
    """The winners of a probe, and the files that it wrote."""
    if as_json:
        print(done.model_dump_json(indent=1))
        return
    winners = done.winners()
    print(f"{len(done.candidates)} combinations fitted, {done.failed} of them failed; {len(winners)} winners")
    table = _table("first loss", "last loss", "AP", "parameters")
    for winner in winners:
        figures = (winner.losses[0], winner.loss, winner.average_precision)
        table.add_row(*map(_plain, figures), said_parameters(winner.parameters))
    _show(table)
    print(f"table  {out}/probe.csv\nplot   {out}/probe.html\nspace  {out}/space.yaml")


def print_quick(rows: Sequence[QuickRow], as_json: bool) -> None:
    """What the trials of a search decide at one half, in the order they were tried."""
    if as_json:
        print(json.dumps([row.figures() for row in rows], indent=1))
        return
    names = ("f2", "accuracy", "sensitivity", "specificity", "ppv")
    table = _table("trial", *names, "AP", "images", "parameters")
    for row in rows:
        figures = row.figures()
        shown = (_plain(figures[name]) for name in (*names, "average_precision"))
        table.add_row(str(row.trial), *shown, str(row.images), said_parameters(row.parameters))
    _show(table)


def print_audit(found: Audit, as_json: bool) -> None:
    """A line an invariant, and one each for what is wrong."""
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    print(f"{found.where}: {found.state}")
    for check in found.checks:
        print(f"{check.invariant}  {check.state:9}  {check.rule}: {check.found}")
        for breach in check.breaches:
            print(f"               {breach}")


def print_confirmation(confirmation: Confirmation, as_json: bool) -> None:
    """What each candidate reached in its trainings, and which was chosen."""
    if as_json:
        print(confirmation.model_dump_json(indent=1))
        return
    print(f"chosen  trial {confirmation.chosen}, by the mean of {confirmation.parts} {confirmation.kind}")
    table = _table("trial", "selection", "mean", "spread", "n", "each")
    for candidate in confirmation.candidates:
        there = [f"{value:.4f}" for value in candidate.values if value is not None]
        mean, spread = _plain(candidate.mean), _plain(candidate.spread)
        selection = f"{candidate.selection_value:.4f}"
        each = " ".join("failed" if value is None else f"{value:.4f}" for value in candidate.values)
        table.add_row(str(candidate.trial), selection, mean, spread, str(len(there)), each)
    _show(table)


def print_run(result: RunResult, as_json: bool) -> None:
    """The end of the road: the chosen trial, its operating point on the test patients, and where everything lies."""
    best, chosen, card, again = result.search.best(), result.chosen, result.card, result.confirmation
    if as_json:
        trials = {"best_trial": best, "chosen_trial": chosen}
        found: dict[str, Any] = {name: trial.model_dump(mode="json") for name, trial in trials.items()}
        found["card"] = card
        found["confirmation"] = again.model_dump(mode="json") if again else None
        print(json.dumps({**found, "bundle": str(result.bundle), "report": str(result.report)}, indent=1))
        return
    by = "by confirmation" if again else "the best of the search"
    of = f"{chosen.number} of {len(result.search.trials)}, {by}"
    print(f"chosen trial      {of}: {said_parameters(chosen.parameters)}")
    metric, score = chosen.objective.metric, _plain(chosen.value, digits=3)
    print(f"selection score   {metric} {score} on validation patients (optimistic: it chose)")
    if best.number != chosen.number:
        print(
            f"best in search    trial {best.number}: {metric} {_plain(best.value, digits=3)}, not confirmed as the best"
        )
    for candidate in again.candidates if again else ():
        mean, spread = (_plain(value, digits=3) for value in (candidate.mean, candidate.spread))
        mark = ", the chosen one" if candidate.trial == chosen.number else ""
        print(f"confirmed         trial {candidate.trial}: mean {mean}, SD {spread} of {len(candidate.values)}{mark}")
    for name, point in card["test"]["operating_points"].items():
        figures = ", ".join(
            f"{metric} {_interval(point[metric])}" for metric in ("sensitivity", "specificity", "ppv", "f2")
        )
        print(f"operating point   {name}: probability >= {point['threshold']:.3f}")
        print(f"on test patients  {figures}")
    metrics = card["test"]["metrics"]
    print(f"                  average_precision {_interval(metrics['average_precision'])}")
    for note in card["test"].get("notes", []):
        print(f"note              {note}")
    manifest, root = result.dataset.manifest, result.dataset.files.root
    if manifest.rejected:
        print(f"rejected          {manifest.rejected} of {manifest.listed} files; which: ich-ray identify {root}")
    print(f"report            {result.report}\nbundle            {result.bundle}")


def _plain(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "undefined"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
