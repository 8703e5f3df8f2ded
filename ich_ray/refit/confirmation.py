"""What a confirmation has shown of its candidates, and the trial that everything after it uses.

Trains nothing and knows no Ray: whoever reads confirm.json needs no more than this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ich_ray.errors import IntegrityError
from ich_ray.refit.race_record import Dropped, RaceNote
from ich_ray.storage import Count, Record, SearchFiles, Seconds, Share, Time, read_record
from ich_ray.trial_records import Objective, TrialResult

if TYPE_CHECKING:
    from ich_ray.results import SearchResult

__all__ = ["Candidate", "Confirmation", "Kind", "chosen_trial", "confirmed"]

Kind = Literal["folds", "seeds"]


class Candidate(Record):
    """One of the top k.

    Attributes:
        trial: its number in the search.
        selection_value: the score it was picked by, the best of many and therefore optimistic.
        values: the best report of each fold or seed, in their order; None where the training failed.
        mean: and `spread`, the sample standard deviation, of those that are there.
        estimate: after a race, what it is worth at the end of its budget by all trainings, and `p_best`, how probable
            it is that it is the best.
        dropped: when it was out of the race, and why; None for those that stayed.
    """

    trial: Count
    selection_value: float
    values: tuple[float | None, ...]
    mean: float | None
    spread: float | None
    estimate: float | None = Field(default=None, exclude_if=lambda value: value is None)
    p_best: Share | None = Field(default=None, exclude_if=lambda value: value is None)
    dropped: Dropped | None = Field(default=None, exclude_if=lambda value: value is None)


class Confirmation(Record):
    """confirm.json.

    Attributes:
        kind: what differs between the trainings of a candidate; there are `parts` of them, in a race at most.
        chosen: the number of the trial with the best mean, or after a race the best estimate, among those none of
            whose trainings failed.
        candidates: in the order of the search, best first; in a race those that had a chance when it began.
        images: seen by all trainings, `cost_gpu_s` the accelerator seconds they took.
        race: how it was run, None where every candidate had every part.
    """

    format: Literal[1] = 1
    kind: Kind
    parts: Count
    objective: Objective
    chosen: Count
    candidates: tuple[Candidate, ...]
    images: Count
    cost_gpu_s: Seconds
    created: Time
    race: RaceNote | None = Field(default=None, exclude_if=lambda note: note is None)


def confirmed(files: SearchFiles) -> Confirmation | None:
    """The confirmation of a search, if there is one.

    Raises:
        IntegrityError: confirm.json does not match its format.
    """
    if not files.confirmation.exists():
        return None
    return read_record(files.confirmation, Confirmation, "remove the file and confirm again")


def chosen_trial(found: SearchResult) -> TrialResult:
    """The trial that confirmation chose, else the best of the search.

    Raises:
        IntegrityError: confirm.json does not match its format, or this search.
    """
    confirmation = confirmed(found.files)
    if confirmation is None:
        return found.best()
    for trial in found.trials:
        if trial.number == confirmation.chosen:
            return trial
    raise IntegrityError(
        f"{found.files.confirmation}: 'chosen' must be the number of a trial of this search, got "
        f"{confirmation.chosen}; confirm again"
    )
