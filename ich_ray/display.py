"""Print datasets, searches and runs on stdout: tables for people, JSON for programs.

Knows records and nothing of verbs or flags.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ich_ray.data.identities import identities_file
from ich_ray.display_figures import plain, print_test_figures
from ich_ray.results import RESULT_COLUMNS, registered_columns
from ich_ray.search.progress_table import format_failure, format_parameters
from ich_ray.terminal import print_json, print_line, print_table
from ich_ray.usage import format_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.sequence_note import SequenceNote
    from ich_ray.data.dataset import DatasetManifest
    from ich_ray.data.identities import FileIdentity
    from ich_ray.pipeline import RunResult
    from ich_ray.refit.confirmation import Candidate, Confirmation
    from ich_ray.results import SearchResult
    from ich_ray.search.audit.search_audit import Audit
    from ich_ray.search.control import Reply
    from ich_ray.search.plan.plan_report import SearchPlan
    from ich_ray.search_records import RequestNote
    from ich_ray.side_by_side import SideBySide
    from ich_ray.trial_records import Parameter, TrialResult

__all__ = [
    "print_audit",
    "print_confirmation",
    "print_dataset",
    "print_identities",
    "print_plan",
    "print_request",
    "print_requests",
    "print_retrained",
    "print_run",
    "print_search",
    "print_sequence",
    "print_side_by_side",
]

_TABLE_ROWS = 10
# Of a value in a line that compares two.
_VALUE_WIDTH = 80
# Columns of text; all others hold numbers.
_TEXT = ("state", "role", "parameters", "reason", "slice", "uid", "file", "path", "detail")


def print_dataset(manifest: DatasetManifest, root: str) -> None:
    """What `prepare` made: files, reasons of rejection, roles."""
    counts = f"{manifest.accepted} accepted, {manifest.rejected} rejected, {manifest.duplicate} duplicate"
    print_line(f"{manifest.listed} files: {counts}, {manifest.excluded} excluded  {root}")
    reasons = dict(manifest.reasons)
    lacking = reasons.pop("file_missing", 0)  # rows of the labels, and no files
    if reasons:
        rows = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        print_table(("reason", "files"), rows, left=_TEXT)
    if lacking:
        print_line(f"labels without a file: {lacking} (file_missing)")
    roles = []
    for role, count in manifest.roles.items():
        share = f"{count.positives / count.slices:.3f}" if count.slices and manifest.level == "slice" else "-"
        roles.append((role, count.slices, count.patients, count.positives, share))
    print_table(("role", "slices", "patients", "positives", "prevalence"), roles, left=_TEXT)
    for note in (*manifest.notes, *_ranking(manifest)):
        print_line(note)
    if manifest.clear:
        print_line("slice ids and file names stand in the clear: prepare again, into another folder, for pseudonyms")
        return
    if manifest.reasons:
        print_line(f"which files: ich-ray identify {root}")
    print_line(f"names behind the pseudonyms: {identities_file(manifest.identities)}")


def _ranking(manifest: DatasetManifest) -> tuple[str, ...]:
    """Whether too few positives are there to tell trials apart, said before a search spends anything."""
    from ich_ray.statistics.metrics import ranking_note

    roles = manifest.roles
    if manifest.level != "slice":
        return ()
    note = ranking_note(sum(role.positives for role in roles.values()), roles["validation"].positives)
    return (note,) if note else ()


def print_identities(rows: Sequence[FileIdentity], asked: bool, as_json: bool) -> None:
    """The files behind pseudonyms that were asked for; or, file by file, why it was not accepted."""
    if as_json:
        print_json([asdict(row) for row in rows])
    elif asked:
        found = [(row.slice_id, row.uid, row.file, row.path, row.reason or "accepted") for row in rows]
        print_table(("slice", "uid", "file", "path", "reason"), found, left=_TEXT)
    elif rows:
        refused = [(row.reason, row.path or f"label {row.uid}", row.detail) for row in rows]
        print_table(("reason", "path", "detail"), refused, left=_TEXT)
    else:
        print_line("every file was accepted")


def print_plan(outlook: SearchPlan, as_json: bool) -> None:
    """What a search would do and take."""
    if as_json:
        print_json(outlook.figures())
        return
    for line in str(outlook).split("\n"):
        print_line(line)


def print_search(found: SearchResult, top: int | None, as_json: bool) -> None:
    """The best `top` trials of a search; by default ten as a table, all as JSON."""
    ranked = found.ranked()
    if as_json:
        trials = [
            {
                **trial.model_dump(mode="json"),
                "value": trial.value,
                **({"usage": used} if (used := trial.usage.figures()) else {}),
                **({"p_best": found.p_best[trial.number]} if trial.number in found.p_best else {}),
                **_of_folds(trial),
                **registered_columns(trial),
            }
            for trial in ranked[:top]
        ]
        print_json({"search": found.record.model_dump(mode="json"), "trials": trials})
        return
    if found.record.leak:
        print_line(found.record.leak)
    states = ", ".join(f"{found.count(state)} {state}" for state in ("completed", "pruned", "failed", "running"))
    print_line(f"{found.record.name}: {len(found.trials)} of {found.record.wanted} trials: {states}")
    rows, usage = [], found.usage
    for trial in ranked[: top or _TABLE_ROWS]:
        seconds = f"{trial.reports[-1].elapsed_s:.0f}" if trial.reports else "-"
        state = f"{trial.state} ({trial.reason})" if trial.reason else trial.state
        value, drawn = plain(trial.value), format_parameters(trial.parameters)
        added = map(_cell, registered_columns(trial).values())
        folds = (" ".join(map(plain, trial.fold_values)),) if found.objective.networks > 1 else ()
        chance = (_share(found.p_best.get(trial.number)),) if found.p_best else ()
        rate = (_rate(trial.usage.images_per_s),) if usage.images_per_s else ()
        rows.append(
            (trial.number, state, value, *chance, f"{trial.images_seen:,}", seconds, *rate, *folds, *added, drawn)
        )
    by_fold = ("each fold",) if found.objective.networks > 1 else ()
    known = ("best",) if found.p_best else ()
    rates = ("images/s",) if usage.images_per_s else ()
    names = ("trial", "state", found.objective.metric, *known, "images", "seconds", *rates, *by_fold)
    columns = (*names, *RESULT_COLUMNS.names(), "parameters")
    print_table(columns, rows, left=_TEXT)
    _print_failures(found)
    if found.faults:
        print_line(found.faults)
    if went := format_usage(usage):
        print_line(went)
    for setup, count in Counter(str(trial.setup) for trial in found.trials if trial.setup).most_common():
        print_line(f"{count} trials on {setup}")


def _cut(difference: str) -> str:
    """A difference without what is too long of its two values, such as a list of all trials."""
    key, _, values = difference.partition(": ")
    shown = " -> ".join(
        value if len(value) <= _VALUE_WIDTH else f"{value[: _VALUE_WIDTH - 1]}…" for value in values.split(" -> ", 1)
    )
    return f"{key}: {shown}{'; --json has all' * (shown != values)}"


def print_side_by_side(compared: SideBySide, as_json: bool) -> None:
    """Several searches, a row each, and how each after the first differs from it."""
    if as_json:
        print_json(compared.figures())
        return
    rows = [
        (at, one.name, f"{one.completed} of {one.trials}", one.metric, plain(one.best), plain(one.confirmed),
         plain(one.test), f"{one.images:,}", f"{one.gpu_hours:.1f}")
        for at, one in enumerate(compared.searches, 1)
    ]  # fmt: skip
    columns = ("search", "name", "completed", "metric", "best", "confirmed", "test", "images", "GPU hours")
    print_table(columns, rows, left=("name", "metric"))
    for at, one in enumerate(compared.searches, 1):
        print_line(f"search {at}: {one.search}")
    for at, pair in enumerate(compared.pairs, 2):
        print_line(f"search {at} and search 1: {'the same dataset' if pair.same_dataset else 'different datasets'}")
        for line in pair.differences[:_TABLE_ROWS]:
            print_line(f"  {_cut(line)}")
        if len(pair.differences) > _TABLE_ROWS:
            print_line(f"  {len(pair.differences) - _TABLE_ROWS} more differences; --json has all")
        print_line(f"  best of search {at}: {pair.verdict}")
        if pair.test:
            print_line(f"  test of search {at}: {pair.test.verdict}")
    print_line("best: the selection score, optimistic; confirmed and test: where those stages have run")


def _of_folds(trial: TrialResult) -> dict[str, Any]:
    return {"fold_values": trial.fold_values} if trial.fold_values else {}


def _print_failures(found: SearchResult) -> None:
    """A line for each way to fail, the commonest first, with one trial to look at."""
    ways: dict[str, list[int]] = {}
    for trial in found.trials:
        if trial.state == "failed":
            ways.setdefault(format_failure(trial), []).append(trial.number)
    commonest = sorted(ways.items(), key=lambda way: -len(way[1]))
    for why, numbers in commonest[:_TABLE_ROWS]:
        others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        print_line(f"trial {numbers[0]}{others} failed: {why}")
    if len(ways) > _TABLE_ROWS:
        print_line(f"{len(ways) - _TABLE_ROWS} more ways to fail; --json has all")


def print_audit(found: Audit, as_json: bool) -> None:
    """A line an invariant, and one each for what is wrong."""
    if as_json:
        print_json(found)
        return
    print_line(f"{found.where}: {found.state}")
    for check in found.checks:
        print_line(f"{check.invariant}  {check.state:9}  {check.rule}: {check.found}")
        for breach in check.breaches:
            print_line(f"               {breach}")


def print_request(reply: Reply, as_json: bool) -> None:
    """What came of a request to a search."""
    if as_json:
        answer = reply.note.model_dump(mode="json") if reply.note else None
        print_json({"id": reply.id, "asked": reply.request.model_dump(mode="json"), "answer": answer})
        return
    print_line(str(reply))


def print_requests(notes: Sequence[RequestNote], waiting: Sequence[str], as_json: bool) -> None:
    """What was asked of a search and how it was answered, and which requests wait."""
    if as_json:
        print_json({"answered": [note.model_dump(mode="json") for note in notes], "waiting": list(waiting)})
        return
    for note in notes:
        when = datetime.fromtimestamp(int(note.id.partition("-")[0]) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        asked = note.asked or "what is no request"
        print_line(f"{when}  {asked}: {'' if note.done else 'refused: '}{note.answer}")
    for name in waiting:
        print_line(f"{name}  waits")
    if not notes and not waiting:
        print_line("nothing was asked of this search")


def print_confirmation(confirmation: Confirmation, as_json: bool) -> None:
    """What each candidate reached in its trainings, and which was chosen."""
    if as_json:
        print_json(confirmation)
        return
    if race := confirmation.race:
        print_line(
            f"chosen  trial {confirmation.chosen}, by a race of {race.trainings} trainings ({confirmation.kind})"
        )
    else:
        print_line(f"chosen  trial {confirmation.chosen}, by the mean of {confirmation.parts} {confirmation.kind}")
    rows = []
    for candidate in confirmation.candidates:
        there = [f"{value:.4f}" for value in candidate.values if value is not None]
        mean, spread = plain(candidate.mean), plain(candidate.spread)
        selection = f"{candidate.selection_value:.4f}"
        each = " ".join("failed" if value is None else f"{value:.4f}" for value in candidate.values)
        raced = (plain(candidate.estimate), _share(candidate.p_best), _dropped(candidate)) if race else ()
        rows.append((candidate.trial, selection, mean, spread, len(there), *raced, each))
    told = ("estimate", "best", "out after") if race else ()
    print_table(("trial", "selection", "mean", "spread", "n", *told, "each"), rows, left=_TEXT)


def _dropped(candidate: Candidate) -> str:
    """After how many trainings of a race it was out."""
    if candidate.dropped is None:
        return "-"
    return f"{candidate.dropped.trainings} (failed)" if candidate.dropped.reason else str(candidate.dropped.trainings)


def print_retrained(card: Card, seeds: int, where: str) -> None:
    """How far the seeds of a retraining lie apart, if there were several, and where its bundle lies."""
    if seeds > 1 and card.retraining is not None:
        print_line(f"seeds   validation {card.search.objective}: {card.retraining.validation}")
    print_line(f"bundle  {where}")


def print_sequence(note: SequenceNote | None, where: str, as_json: bool) -> None:
    """What the sequence model of a bundle adds; nothing where there is none."""
    if as_json:
        print_json({"sequence": note.model_dump(mode="json") if note else None, "bundle": where})
        return
    if note is not None:
        print_line(f"sequence model    {note.parameters.model}, trial {note.trial} of {note.trials}")
        for role, figures in note.figures.items():
            print_line(f"any, on {role} patients" + (", cross-fitted" if role == "calibration" else ""))
            if not figures:
                print_line("  not defined: too few patients")
                continue
            rows = [(way, *map(plain, found.values())) for way, found in figures.items()]
            print_table(("model", *figures["none"]), rows, left=("model",))
    print_line(f"bundle  {where}")


def print_run(result: RunResult, as_json: bool) -> None:
    """Print the end of a run: the chosen trial, its operating point on test patients, all paths."""
    best, chosen, card, again = result.search.best(), result.chosen, result.card, result.confirmation
    if as_json:
        trials = {"best_trial": best, "chosen_trial": chosen}
        found: dict[str, Any] = {name: trial.model_dump(mode="json") for name, trial in trials.items()}
        found["card"] = card
        found["confirmation"] = again.model_dump(mode="json") if again else None
        print_json({**found, "bundle": str(result.bundle), "report": str(result.report)})
        return
    by = "by confirmation" if again else "the best of the search"
    of = f"{chosen.number} of {len(result.search.trials)}, {by}"
    print_line(f"chosen trial      {of}: {format_parameters(chosen.parameters)}")
    metric, score = chosen.objective.metric, plain(chosen.value, digits=3)
    print_line(f"selection score   {metric} {score} {result.search.objective.judged} (optimistic: it chose)")
    if best.number != chosen.number:
        print_line(
            f"best in search    trial {best.number}: {metric} {plain(best.value, digits=3)}, not confirmed as the best"
        )
    for candidate in again.candidates if again else ():
        mean, spread = (plain(value, digits=3) for value in (candidate.mean, candidate.spread))
        mark = ", the chosen one" if candidate.trial == chosen.number else ""
        print_line(
            f"confirmed         trial {candidate.trial}: mean {mean}, SD {spread} of {len(candidate.values)}{mark}"
        )
    print_test_figures(card["test"])
    manifest, root = result.dataset.manifest, result.dataset.files.root
    if manifest.rejected:
        print_line(f"rejected          {manifest.rejected} of {manifest.listed} files; which: ich-ray identify {root}")
    print_line(f"report            {result.report}")
    print_line(f"bundle            {result.bundle}")


def _cell(value: Parameter | None) -> str:
    return plain(value) if value is None or isinstance(value, float) else str(value)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
