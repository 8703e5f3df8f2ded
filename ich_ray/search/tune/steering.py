"""Requests to a running search, carried out: a Tune callback in the driver.

A request is a file in the folder of the search (request_files.py). The driver, the only one who writes the ledger,
checks it and answers by an amendment of search.json. The answer is written first and then carried out: a driver that
is killed between the two leaves a note by which the next one does what is missing, and nothing twice.
"""

from __future__ import annotations

import time
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.tune import Callback

from ich_ray.errors import ConfigError, IchRayError, SpaceError
from ich_ray.progress import say
from ich_ray.search.ledger import Verdict, trial_seed
from ich_ray.search.request_files import read_request, waiting_requests
from ich_ray.search.space.feasible_draw import first_that_fits
from ich_ray.search.space.yaml_file import check_point
from ich_ray.search_records import STOPPED_BY_REQUEST, ControlRequest, RequestNote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ray.tune.experiment import Trial

    from ich_ray.search.ledger import Ledger
    from ich_ray.search.space.constraints import Refuses
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.search.tune.ledger_callback import LedgerCallback
    from ich_ray.search.tune.sampler import LedgerSampler
    from ich_ray.search.tune.scheduler import StoppingScheduler
    from ich_ray.trial_records import Parameter

__all__ = ["Steering"]

_READ_EVERY_S = 2.0
_STOPPED = Verdict("pruned", STOPPED_BY_REQUEST, "`ich-ray control --stop-trial` has ended it")
_LONGEST_ANSWER = 2000


class _Checked(NamedTuple):
    """A request that can be carried out.

    Attributes:
        answer: what it is answered.
        change: of the record of the search.
        drawn: the parameters of a trial that is added; a draw that fits tight constraints may take minutes.
    """

    answer: str
    change: Mapping[str, Any] = MappingProxyType({})
    drawn: Mapping[str, Parameter] = MappingProxyType({})


class Steering(Callback):
    """Reads, answers and carries out what is asked of a search.

    Args:
        space: of the search.
        ledger: its requests that were answered before are not answered again.
        scheduler: is told whom to stop.
        sampler: is told what to start.
        counts: what people see.
        exhausted: how trials end because the search has had its time, None while it has some.
        refuses: of the space's constraints.
        now: the clock.
    """

    def __init__(
        self,
        space: SearchSpace,
        ledger: Ledger,
        scheduler: StoppingScheduler,
        sampler: LedgerSampler,
        counts: LedgerCallback,
        exhausted: Callable[[], Verdict | None],
        *,
        refuses: Refuses | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space, self._ledger, self._scheduler, self._sampler = space, ledger, scheduler, sampler
        self._counts, self._exhausted, self._refuses, self._now = counts, exhausted, refuses or (lambda _: None), now
        self._answered = {note.id for note in ledger.record.requests}
        self._kept: set[str] = set()  # answered, and could not be removed
        self._last = now()

    def begin(self) -> None:
        """Carry out what the ledger says was asked, as far as a former driver has not."""
        self._sampler.is_paused = bool(self._ledger.record.asked_last("pause"))
        for note in self._ledger.record.requests:
            if not (note.done and note.asked):
                continue
            if note.asked.stop_trial is not None:
                self._stop(note.asked.stop_trial)
            if note.asked.add is not None and note.trial == self._ledger.next_number:
                self._sampler.add(self._drawn(note.asked.add))

    def wait(self) -> None:
        """Read where no trial runs, before the first and after the last one; in a pause until it is over."""
        self.read()
        if self._sampler.is_paused and self._is_open():
            say(f"search {self._ledger.record.name}: paused, nothing runs; `ich-ray control --unpause` goes on")
        with suppress(KeyboardInterrupt):
            while self._sampler.is_paused and self._is_open():
                time.sleep(_READ_EVERY_S)
                self.read()

    def _is_open(self) -> bool:
        return not self._sampler.is_exhausted and self._exhausted() is None

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        if self._now() - self._last >= _READ_EVERY_S:
            self.read()

    def read(self) -> None:
        """Answer the requests that lie in the folder."""
        self._last = self._now()
        files = self._ledger.files
        try:
            names = waiting_requests(files, self._kept)
        except (OSError, IchRayError):  # a storage that fails for a moment; the next look is soon
            return
        for name in names:
            if name not in self._answered and not self._answer(name):
                continue
            try:
                files.request(name).unlink(missing_ok=True)
            except OSError:  # such as a folder of that name, or the file of a user whose folder this is
                self._kept.add(name)

    def _answer(self, name: str) -> bool:
        """Whether a request is answered now."""
        request: ControlRequest | None = None
        try:
            request = read_request(self._ledger.files.request(name))
            checked = self._checked(request)
        except OSError:
            return False
        except IchRayError as error:
            note = RequestNote(id=name, asked=request, done=False, answer=_line(str(error)))
            self._note(note)
            say(f"request refused: {note.answer}")
            return True
        trial = self._ledger.next_number if request.add is not None else None
        self._note(RequestNote(id=name, asked=request, done=True, answer=checked.answer, trial=trial), checked.change)
        say(f"request {request}: {checked.answer}")
        self._carry_out(request, checked.drawn)
        return True

    def _note(self, note: RequestNote, change: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._ledger.amend(request=note.model_dump(mode="json"), **change)
        self._answered.add(note.id)

    def _checked(self, request: ControlRequest) -> _Checked:
        """What a request is answered, and what it changes.

        Raises:
            IchRayError: it cannot be carried out.
        """
        if (over := self._exhausted()) and request.stop_trial is None:
            raise ConfigError(f"{request}: a search must have time left, got one that ends ({over.detail})")
        if request.stop_trial is not None:
            return _Checked(self._checked_stop(request.stop_trial))
        if request.add is not None:
            return self._checked_add(request.add)
        if request.trials is not None:
            return self._checked_trials(request.trials)
        if request.concurrent is not None:
            return _Checked(f"at most {request.concurrent} trials run at a time, as far as there is room")
        return _Checked("no new trial starts, and running ones go on" if request.pause else "trials are started again")

    def _checked_stop(self, number: int) -> str:
        trial = self._ledger.trials.get(number)
        if trial is None:
            there = f"0 to {max(self._ledger.trials)}" if self._ledger.trials else "none"
            raise ConfigError(f"--stop-trial: must be a trial of the search, got {number} where there are {there}")
        if trial.state != "running":
            raise ConfigError(f"--stop-trial: must be a trial that runs, got {number}, which is {trial.state}")
        return f"trial {number} ends {'now' if number in self._sampler.waiting else 'at its next report'}"

    def _checked_add(self, point: dict[str, Any]) -> _Checked:
        space, number = self._space, self._ledger.next_number
        if space.listed is not None:
            raise SpaceError(
                f"--add: the trials of the space {space.name} are listed and none can be added, got one; begin another "
                "search with it"
            )
        check_point(space, point, "--add", self._next_seed)
        drawn, wanted = self._drawn(point), self._sampler.wanted + 1
        return _Checked(f"trial {number} runs next; the search has {wanted} trials now", {"trials": wanted}, drawn)

    def _checked_trials(self, wanted: int) -> _Checked:
        there, listed = len(self._ledger.trials), self._space.listed
        if wanted < there:
            raise ConfigError(f"--trials: must be at least the {there} trials that have begun, got {wanted}")
        if listed is not None and wanted > len(listed):
            raise ConfigError(
                f"--trials: the space {self._space.name} lists {len(listed)} trials and no more, got {wanted}"
            )
        return _Checked(f"the search has {wanted} trials now", {"trials": wanted})

    def _carry_out(self, request: ControlRequest, drawn: Mapping[str, Parameter]) -> None:
        if request.stop_trial is not None:
            self._stop(request.stop_trial)
        elif request.add is not None:
            self._want(self._sampler.wanted + 1)
            self._sampler.add(drawn)
        elif request.trials is not None:
            self._want(request.trials)
        elif request.concurrent is not None:
            self._sampler.most = request.concurrent
        else:
            self._sampler.is_paused = bool(request.pause)

    def _want(self, trials: int) -> None:
        self._sampler.want(trials)
        self._counts.wanted = trials

    def _stop(self, number: int) -> None:
        if number in self._sampler.waiting:
            self._sampler.withdraw(number, _STOPPED)
            self._counts.withdrawn(number)
        elif number in self._ledger.trials and self._ledger.trials[number].state == "running":
            self._scheduler.stopping[number] = _STOPPED

    def _drawn(self, point: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """A trial with the values of a point: of the seed of the next one, so the same after a resume."""
        return first_that_fits(self._space, self._refuses, self._next_seed, point)

    @property
    def _next_seed(self) -> int:
        return trial_seed(self._ledger.record.seed, self._ledger.next_number)


def _line(text: str) -> str:
    """An answer in a line that a terminal can show."""
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return shown if len(shown) <= _LONGEST_ANSWER else f"{shown[:_LONGEST_ANSWER]} ..."
