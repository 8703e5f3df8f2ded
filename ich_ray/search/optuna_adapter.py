"""Convert a ledger's trials to Optuna's states, values and distributions.

Knows nothing of Ray, of samplers or of files: sampler.py tells these trials to a running study, export writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from pydantic import ValidationError

from ich_ray.errors import IntegrityError
from ich_ray.search.space.space import Given
from ich_ray.search_records import STOPPED_BY_REQUEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna.distributions import BaseDistribution

    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Parameter, TrialResult

__all__ = ["Recorder", "as_optuna", "drawn_again", "fitting", "outcome", "reached"]


def fitting(space: SearchSpace, trials: Iterable[TrialResult]) -> list[TrialResult]:
    """The finished trials, of another search perhaps, whose networks this space could have drawn.

    Ranges may differ, and so may what is named at all: a trial fits if all its hyperparameters, defaults included, can
    be drawn here.
    """
    return [trial for trial in trials if trial.state != "running" and _fits(space, trial)]


def _fits(space: SearchSpace, trial: TrialResult) -> bool:
    try:
        _projected(space, trial)
    except LookupError:
        return False
    return True


def _projected(space: SearchSpace, trial: TrialResult) -> dict[str, Parameter]:
    """The trial's parameters in this space's terms.

    Raises:
        LookupError: it does not fit; the first parameter that cannot be drawn here is named.
    """
    try:
        there = space.drawn.made(trial.parameters).model_dump()
        here = space.draw(Given(there))
    except ValidationError as error:
        raise LookupError(".".join(map(str, error.errors()[0]["loc"]))) from None
    for name, value in here.hyperparameters.model_dump().items():
        if value != there[name]:
            raise LookupError(name)
    return here.parameters


def drawn_again(space: SearchSpace, record: TrialResult) -> tuple[dict[str, Parameter], Recorder]:
    """The parameters of a search's own trial, and the distributions that they were drawn from.

    Raises:
        IntegrityError: the space could not have drawn them.
    """
    try:
        recorder = Recorder(_projected(space, record))
        return space.draw(recorder).parameters, recorder
    except LookupError as error:
        odd = str(error.args[0])
        raise IntegrityError(
            f"trials/{record.number:05d}.json: its parameters must be drawn from the space {space.name}, got "
            f"{odd}={record.parameters.get(odd)!r}; restore the file from a copy, or begin a new search with "
            "--warm-start on this one, which leaves such trials out"
        ) from None


def outcome(record: TrialResult, rungs: Sequence[int] = ()) -> tuple[OptunaState, float | None, dict[int, float]]:
    """State, value and finite intermediate values by images_seen, as Optuna should know them.

    Args:
        record: of a trial that has ended.
        rungs: if given, what it had reached at each of them is all that is told between its begin and its end, unless
            it reached none. TPE ranks pruned trials by their last step first, and one that was stopped between two
            rungs is no better for it; one that somebody stopped before the first rung says nothing against itself.
    """
    arrived = reached(record, rungs)
    if rungs and not arrived and record.reason == STOPPED_BY_REQUEST:
        return OptunaState.FAIL, None, {}
    intermediate = arrived or _reported(record)
    if record.state == "completed" and record.value is not None:
        return OptunaState.COMPLETE, record.value, intermediate
    if record.state == "pruned" and intermediate:
        return OptunaState.PRUNED, None, intermediate
    return OptunaState.FAIL, None, intermediate


def _reported(record: TrialResult) -> dict[int, float]:
    metric = record.objective.metric
    return {report.images_seen: value for report in record.reports if (value := report.metrics.get(metric)) is not None}


def reached(record: TrialResult, rungs: Iterable[int]) -> dict[int, float]:
    """The best value that a trial, ended or not, had reported by the time it reached each rung.

    With folds, the best with as many folds as then.
    """
    reported = _reported(record)
    fold = {report.images_seen: report.network for report in record.reports}
    arrivals = {level: min((images for images in reported if images >= level), default=None) for level in rungs}
    return {
        level: record.objective.best(
            value for images, value in reported.items() if images <= arrival and fold[images] == fold[arrival]
        )
        for level, arrival in arrivals.items()
        if arrival is not None
    }


def as_optuna(space: SearchSpace, record: TrialResult) -> optuna.trial.FrozenTrial:
    """A trial that has ended, as it can be added to a study.

    Raises:
        IntegrityError: the space could not have drawn it.
    """
    parameters, recorder = drawn_again(space, record)
    state, value, intermediate = outcome(record, space.rungs())
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params={name: parameters[name] for name in recorder.distributions},
        distributions=recorder.distributions,
        intermediate_values=intermediate,
    )


class Recorder(Given):
    """Draws given values again and notes the distributions they came from."""

    def __init__(self, values: Mapping[str, Parameter]) -> None:
        super().__init__(values)
        self.distributions: dict[str, BaseDistribution] = {}

    def categorical(self, name: str, choices: Sequence[Parameter]) -> Parameter:
        self.distributions[name] = CategoricalDistribution(list(choices))
        return super().categorical(name, choices)

    def float(self, name: str, low: float, high: float, log: bool) -> float:
        self.distributions[name] = FloatDistribution(low, high, log=log)
        return super().float(name, low, high, log)

    def int(self, name: str, low: int, high: int) -> int:
        self.distributions[name] = IntDistribution(low, high)
        return super().int(name, low, high)
