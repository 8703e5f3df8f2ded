"""How probable it is of each of the best trials that it is the best, by who judged them.

Patients are drawn again with replacement, the same for all trials, and in each draw one of them is best: what is hard
for all does not count. Their logits are those of folds, or of the validation role at the best report, which a worker
keeps while it trains. Nothing is said of what another seed would have given: refit/racing.py does. No Ray here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ich_ray.errors import IntegrityError
from ich_ray.progress import say
from ich_ray.results import best_first
from ich_ray.search.ledger import MOST_LOGITS
from ich_ray.search.out_of_fold import OutOfFold, kept_logits, part_of, read_logits, save_logits
from ich_ray.search_records import Chance, Chances
from ich_ray.statistics.pooling import chances_of_best
from ich_ray.storage import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.search.ledger import Ledger
    from ich_ray.statistics.pooling import FoldPart
    from ich_ray.storage import SearchFiles
    from ich_ray.trial_records import LogitsReference, Objective, TrialResult

__all__ = ["BestLogits", "format_chances", "judged_parts", "write_chances"]


# Of each that is told in a line.
_TOLD = 3


class BestLogits:
    """What the network of a trial said of the validation slices at its best report, kept in a file.

    Args:
        files: of the search.
        trial: its number.
        objective: of the search.
        reports: of the attempt that this one goes on after.
        wanted: whether any are kept.

    Attributes:
        reference: to the file; None where there is none of the best report. That of the best report before it stays
            until the next one, as a process that dies before its checkpoint comes back to that.
    """

    def __init__(
        self,
        files: SearchFiles,
        trial: int,
        objective: Objective,
        reports: Sequence[Mapping[str, Any]],
        *,
        wanted: bool,
    ) -> None:
        self._files, self._trial, self._objective, self._wanted = files, trial, objective, wanted
        self._best: float | None = None
        self.reference: LogitsReference | None = None
        best_images = 0
        for report in reports if wanted else ():
            if objective.improves(value := report["metrics"].get(objective.metric), self._best):
                self._best, best_images = value, report["images_seen"]
        if best_images:
            self.reference = kept_logits(files, trial, best_images)
        self._passed: LogitsReference | None = None

    def report(self, report: Mapping[str, Any], logits: NDArray[np.float32] | None) -> None:
        """Write the logits of a report if it is the best so far; the file before goes with the next one."""
        if self._passed:
            (self._files.root / self._passed.file).unlink(missing_ok=True)
            self._passed = None
        value = report["metrics"].get(self._objective.metric)
        if not (self._wanted and self._objective.improves(value, self._best)):
            return
        before, self._best, self.reference = self.reference, value, None
        if logits is not None:
            by_label = logits.reshape(len(logits), -1)
            self.reference = save_logits(self._files, self._trial, report["images_seen"], by_label)
        self._passed = before if before != self.reference else None


def write_chances(ledger: Ledger, dataset: PreparedDataset) -> Chances | None:
    """Compare the best completed trials of a search; None, and no file, where that cannot be told."""
    objective, completed = ledger.record.objective, [one for one in ledger.trials.values() if one.state == "completed"]
    kept = [trial for trial in completed if trial.value is not None and (trial.logits or trial.best_notes)]
    best = best_first(kept, objective)[:MOST_LOGITS]
    known = judged_parts(ledger.files, dataset, best, objective, ledger.record.seed)
    judged = dict(known) if len(best) > 1 else {}
    p_best = chances_of_best([*judged.values()], objective.metric) if len(judged) > 1 else None
    if p_best is None:
        ledger.files.chances.unlink(missing_ok=True)
        return None
    patients, positive = _patients(next(iter(judged.values())))
    chances = Chances(
        completed=len(completed),
        patients=patients,
        positive=positive,
        trials=tuple(Chance(trial=one, p_best=share) for one, share in zip(judged, p_best, strict=True)),
    )
    write_json(ledger.files.chances, chances.model_dump(mode="json"))
    return chances


def _patients(parts: Sequence[FoldPart]) -> tuple[int, int]:
    """Who judges trials, all and positive."""
    patients = np.concatenate([part.patients for part in parts]).astype(str)
    positive = np.concatenate([part.targets[:, -1] for part in parts]) > 0
    return len(np.unique(patients)), len(np.unique(patients[positive]))


def judged_parts(
    files: SearchFiles, dataset: PreparedDataset, best: Sequence[TrialResult], objective: Objective, seed: int
) -> Iterator[tuple[int, list[FoldPart]]]:
    """What trials said of those who judge them, by number; lost files are left out.

    `seed` is that of the search, which divides its patients.
    """
    folded = OutOfFold(files, dataset, objective, seed) if objective.networks > 1 else None
    slices = dataset.role("validation")
    for trial in best:
        try:
            if folded:
                yield trial.number, [folded.read(note.number, note.logits) for note in trial.best_notes]
            elif trial.logits:
                yield trial.number, [part_of(slices, read_logits(files, trial.logits, len(slices)))]
        except (OSError, IntegrityError) as error:
            say(f"ranking: trial {trial.number} cannot be compared: {error}")


def format_chances(chances: Chances | None) -> str:
    """What the ranking knows, in a line; empty where nothing."""
    if chances is None:
        return ""
    most = sorted(chances.trials, key=lambda one: -one.p_best)[:_TOLD]
    told = ", ".join(f"trial {one.trial} {one.p_best:.0%}" for one in most)
    return f"best of all: {told} (by {chances.positive} positive of {chances.patients} patients)"
