"""What must hold of the files of a search: I1 to I7, each a function of what was read.

What only a running driver can know (which trials Tune ran, what the sampler was told) the driver compares at its end
and notes in search.json; I4 reads that note. Decides nothing about datasets, and never writes; how the files are read,
whatever is wrong with them, is in ledger_reader.py.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ich_ray.data.dataset_audit import Check, checked
from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.results import SearchResult
from ich_ray.search.audit.ledger_reader import REMEDY, ended_with
from ich_ray.search.space.space import Given
from ich_ray.storage import first_problem, read_json, read_record, sha256
from ich_ray.training.checkpoint_store import CheckpointStore
from ich_ray.trial_records import TrialResult, WeightsNote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upath import UPath

    from ich_ray.search.audit.ledger_reader import LedgerFiles
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.storage import SearchFiles
    from ich_ray.trial_records import CheckpointReference, LogitsReference, Objective

__all__ = ["check_search"]

# A running trial moves on while its checkpoint is read; more often than this in a row it is alive.
_LOOKS = 20


def check_search(found: LedgerFiles) -> list[Check]:
    """I1 to I7, in order."""
    checks = (_one_state, _final_states, _reports, _sampler, _asked, _best, _checkpoints)
    return [check(found) for check in checks]


def _one_state(found: LedgerFiles) -> Check:
    states = Counter(trial.state for trial in found.trials.values())
    counts = " + ".join(f"{states[state]} {state}" for state in ("completed", "pruned", "failed"))
    late = [
        f"trial {number}: it is unfinished, though the search had ended with {ended_with(found.record)} trials"
        for number in found.unfinished
        if number < ended_with(found.record)
    ]
    return checked(
        "I1",
        "suggested = completed + pruned + failed + unfinished; none is unfinished when a search ends",
        f"{found.suggested} suggested = {counts} + {states['running']} unfinished",
        found.missing + late,
    )


def _final_states(found: LedgerFiles) -> Check:
    def breaches() -> Iterator[str]:
        yield from found.misplaced
        for number, trial in found.trials.items():
            if trial.number != number:
                yield f"trials/{found.files.trial(number).name}: it must hold trial {number}, got trial {trial.number}"
            problem = _contradiction(trial, found.space)
            if problem:
                yield f"trial {number}: {problem}"

    ended = sum(trial.state != "running" for trial in found.trials.values())
    return checked("I2", "one final state per trial", f"{ended} trials have ended, each once", breaches())


def _contradiction(trial: TrialResult, space: SearchSpace | None) -> str:
    """What in a trial's record speaks against its state, empty if nothing."""
    if trial.state == "running":
        return "it is unfinished, got a time at which it ended" if trial.ended is not None else ""
    if trial.ended is None:
        return f"it is {trial.state}, got no time at which it ended"
    if trial.state != "completed":
        return "" if trial.reason else f"it is {trial.state}, got no reason"
    if trial.value is None:
        return f"it is completed, got no {trial.objective.metric}"
    return _unspent(trial, space) if space else ""


def _unspent(trial: TrialResult, space: SearchSpace) -> str:
    """What a completed trial has left of its images, empty if nothing."""
    try:
        images = space.images_of(trial.parameters)
    except ValidationError as error:
        return f"its parameters must make a network, got {first_problem(error)}"
    return f"it is completed, got {trial.images_seen} of {images} images" if trial.images_seen < images else ""


def _reports(found: LedgerFiles) -> Check:
    def breaches(space: SearchSpace) -> Iterator[str]:
        budget = space.budget
        for number, trial in found.trials.items():
            seen = [report.images_seen for report in trial.reports]
            kept = _kept_reports(found.files, number) if trial.state == "running" else []
            seen += [images for images in kept if images > trial.images_seen]
            due = [(index + 1) * budget.report_every for index in range(len(seen))]
            if seen != due:
                first = next(index for index, pair in enumerate(zip(seen, due, strict=True)) if pair[0] != pair[1])
                yield f"trial {number}: report {first + 1} must be at {due[first]} images, got {seen[first]}"
            yield from (f"trial {number}: {problem}" for problem in _misplaced_folds(trial, space))
            yield from (f"trial {number}: {problem}" for problem in _misplaced_growth(trial))

    rule = "images_seen strictly increasing, no gaps after merging the history kept in the checkpoint"
    if found.space is None:
        return _no_space("I3", rule)
    count = sum(len(trial.reports) for trial in found.trials.values())
    return checked("I3", rule, f"{count} reports of {len(found.trials)} trials", breaches(found.space))


def _misplaced_folds(trial: TrialResult, space: SearchSpace) -> Iterator[str]:
    """What in a trial's reports is not of the fold that it must be of: each is whole before the next begins."""
    each = space.budget.images
    for report in trial.reports:
        due = ((report.images_seen - 1) // each, (report.images_seen - 1) % each + 1) if space.objective.folds else None
        note = report.fold
        if (due is None) != (note is None):
            yield f"the report at {report.images_seen} images must {'have no' if due is None else 'name its'} fold"
        elif note and due and (note.number, note.images_seen, note.whole) != (*due, due[1] == each):
            yield (
                f"the report at {report.images_seen} images must be of fold {due[0]} at {due[1]}, got fold "
                f"{note.number} at {note.images_seen}{', its end' if note.whole else ''}"
            )


def _misplaced_growth(trial: TrialResult) -> Iterator[str]:
    """What a trial's growth says that its reports do not: it grows at one of them, and in their order."""
    seen = {report.images_seen for report in trial.reports}
    last = 0
    for note in trial.grown:
        if note.images_seen not in seen or note.images_seen < last:
            yield f"it must grow at a report of its own, one after the other, got {note.images_seen} images"
        last = note.images_seen


def _kept_reports(files: SearchFiles, number: int) -> list[int]:
    """images_seen of the reports in the newest whole checkpoint of a trial: what a resume would tell the ledger."""
    newest = CheckpointStore(files.checkpoint(number), "newest").newest()
    try:
        return [int(report["images_seen"]) for report in newest.reports] if newest else []
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


def _no_space(invariant: str, rule: str) -> Check:
    found = "the space in search.json cannot be read by this version"
    return Check(invariant=invariant, rule=rule, state="unchecked", found=found)


def _sampler(found: LedgerFiles) -> Check:
    def breaches(space: SearchSpace) -> Iterator[str]:
        for number, trial in found.trials.items():
            if not _fits(space, trial):
                yield f"trial {number}: its parameters cannot be drawn from the space, so the sampler cannot know it"
        if ended and not ended.trials == ended.sampler == ended.tune:
            known = f"{ended.sampler} with the sampler and {ended.tune} with Tune"
            yield f"search.json: {ended.trials} trials had ended, got {known}"

    ended = found.record.ended
    rule = "trials in the ledger = trials the sampler knows = trials Tune ran"
    if found.space is None:
        return _no_space("I4", rule)
    live = f"compared at the last end with {ended.trials}" if ended else "no driver has come to an end yet"
    told = f"{len(found.trials)} in the ledger can be told to the sampler; sampler and Tune: {live}"
    return checked("I4", rule, told, breaches(found.space))


def _fits(space: SearchSpace, trial: TrialResult) -> bool:
    if space.listed is not None:
        return trial.parameters in space.listed
    try:
        values = space.drawn.made(trial.parameters).model_dump()
        return space.draw(Given(values)).parameters == trial.parameters
    except (LookupError, ValueError):
        return False


def _asked(found: LedgerFiles) -> Check:
    def breaches() -> Iterator[str]:
        if len(found.trials) > wanted:
            yield f"search.json: {wanted} trials were asked for, got {len(found.trials)}"
        for number in found.trials:
            if number >= max(wanted, ended_with(found.record)):
                yield f"trials/{found.files.trial(number).name}: {wanted} trials were asked for, got number {number}"
        first: dict[tuple[Any, ...], int] = {}
        for number, trial in found.trials.items():
            points = len(found.space.points) + len(added) if found.space else 0
            freely = number not in added and number >= points and _drawn_freely(found.space, trial)
            draw = (None if freely else trial.seed, *sorted(trial.parameters.items()))
            if draw in first:
                yield f"trials {first[draw]} and {number}: they must differ, got one draw twice"
            first.setdefault(draw, number)
        if ended and ended.trials < ended.asked and not ended.out_of_time:
            yield f"search.json: {ended.asked} trials were asked for, got an end after {ended.trials}"

    wanted, ended = found.record.wanted, found.record.ended
    added = {note.trial for note in found.record.requests if note.trial is not None}
    return checked("I5", "distinct trials = trials asked for", f"{len(found.trials)} of {wanted} asked for", breaches())


def _drawn_freely(space: SearchSpace | None, trial: TrialResult) -> bool:
    """Whether a second trial with the same parameters was neither asked for nor can be a coincidence."""
    if space is None or trial.number < len(space.points) or trial.repeats is not None:
        return False
    return any(spec.kind in {"uniform", "loguniform"} and spec.name in trial.parameters for spec in space.parameters)


def _best(found: LedgerFiles) -> Check:
    rule = "best() = an offline argmax over the ledger"
    trials = tuple(found.trials.values())
    try:
        best: int | None = SearchResult(found.files, found.record, trials).best().number
    except IchRayError:
        best = None
    completed: list[tuple[float, int]] = []
    wrong = []
    for number in found.trials:
        try:
            value = _value(found.files.trial(number), found.record.objective)
        except (OSError, LookupError, TypeError, ValueError, IntegrityError) as error:
            wrong.append(f"trials/{found.files.trial(number).name}: its values must be readable, got {error}")
            continue
        if value is not None and found.trials[number].state == "completed":
            completed.append((value, number))
    sign = 1 if found.record.objective.mode == "max" else -1
    offline = max(completed, key=lambda pair: (sign * pair[0], -pair[1]), default=(None, None))[1]
    if best != offline:
        wrong.append(f"best(): it must be trial {offline}, got trial {best}")
    return checked("I6", rule, "no trial has completed" if offline is None else f"trial {offline}", wrong)


def _value(path: UPath, objective: Objective) -> float | None:
    """The best value in a trial's file, read without the classes that `best()` relies on.

    Raises:
        TypeError: a value is no number.
    """
    reports = read_json(path).get("reports", ())
    whole = [report["fold"]["number"] for report in reports if (report.get("fold") or {}).get("whole")]
    judged = [
        report for report in reports if not report.get("fold") or report["fold"]["number"] == max(whole, default=0)
    ]
    values = [report["metrics"].get(objective.metric) for report in judged]
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{objective.metric}={value!r}, which is no number")
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (max if objective.mode == "max" else min)(finite, default=None)


def _checkpoints(found: LedgerFiles) -> Check:
    referenced = [number for number, trial in found.trials.items() if trial.checkpoint]
    breaches = [problem for number in referenced if (problem := _unlike(found.files, number, found.trials[number]))]
    judged = [trial for trial in found.trials.values() if trial.keeps_logits and trial.state != "running"]
    breaches += [problem for trial in judged if (problem := _lost_logits(found.files.root, trial))]
    count, card = len(referenced), found.files.bundle / "card.json"
    if card.exists():
        count += 1
        breaches += _bundle(card)
    rule = "every referenced checkpoint exists and its hash matches"
    of_folds = "of the folds " if any(trial.folds_done for trial in judged) else ""
    logits = f", logits {of_folds}of {len(judged)} trials" if judged else ""
    return checked("I7", rule, f"{count} files of weights{logits}", breaches)


def _lost_logits(root: UPath, trial: TrialResult) -> str:
    """The first file of logits of a trial that is not there as it was written, empty if all are."""
    of_folds = [report.fold.logits for report in trial.reports if report.fold]
    for reference in (*of_folds, *([trial.logits] if trial.logits else [])):
        if problem := _mismatch(root, reference):
            return f"trial {trial.number}: {problem}"
    return ""


def _unlike(files: SearchFiles, number: int, trial: TrialResult) -> str:
    """What is wrong with the checkpoint that a trial refers to, empty if nothing; a running one moves on meanwhile."""
    for _ in range(_LOOKS):
        if trial.checkpoint is None or not (problem := _mismatch(files.root, trial.checkpoint)):
            return ""
        again = read_record(files.trial(number), TrialResult, REMEDY)
        if again.checkpoint == trial.checkpoint:
            return f"trial {number}: {problem}"
        trial = again
    return ""


def _mismatch(root: UPath, reference: CheckpointReference | LogitsReference) -> str:
    try:
        same = sha256(root / reference.file) == reference.sha256
    except (OSError, IntegrityError) as error:
        return f"{reference.file} must be readable, got {type(error).__name__}"
    return "" if same else f"{reference.file} must have the SHA-256 in the ledger, got another one"


def _bundle(card: UPath) -> Iterator[str]:
    try:
        told = read_json(card)
        holders = [told, *(told.get("members") or ()), *([told["sequence"]] if told.get("sequence") else ())]
        weights = [WeightsNote.model_validate(holder["weights"]) for holder in holders]
        changed = [one.file for one in weights if sha256(card.parent / one.file) != one.sha256]
    except (OSError, LookupError, TypeError, ValueError, AttributeError, IntegrityError) as error:
        yield f"final/bundle: card and weights must be readable, got {type(error).__name__}: {error}"
        return
    for file in changed:
        yield f"final/bundle/{file}: SHA-256 must be the one in card.json, got another one"
