"""Searches, read from their ledgers while they run or after it: trials in order, and as a table.

They can be read from anywhere the files can. No Ray, no Optuna, no torch. search_records.py says what the files hold.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.registry import Registry
from ich_ray.search_records import Chances, SearchRecord
from ich_ray.storage import Location, SearchFiles, exists, is_foreign, locate, read_record
from ich_ray.trial_records import OF_NODES, OUT_OF_MEMORY, Objective, Parameter, Report, TrialResult, TrialState
from ich_ray.usage import ReportUsage, Usage, added

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pandas as pd
    from upath import UPath

__all__ = [
    "RESULT_COLUMNS",
    "SearchResult",
    "best_first",
    "fault_note",
    "find_search",
    "open_network_search",
    "open_search",
    "read_search_record",
    "read_trial",
    "registered_columns",
]


def fault_note(record: SearchRecord, trials: Iterable[TrialResult]) -> str:
    """What machines and memory have cost a search, and who is in quarantine; empty without any."""
    trials = [*trials]
    attempts = [attempt for trial in trials for attempt in trial.lost if attempt.cause != OUT_OF_MEMORY]
    again = [trial.number for trial in trials if any(one.cause == OUT_OF_MEMORY for one in trial.lost)]
    went = [attempt for attempt in attempts if attempt.cause in OF_NODES]
    faults = Counter(f"{attempt.cause} on {attempt.place}" for attempt in attempts if attempt.cause not in OF_NODES)
    causes = ", ".join(f"{count} {what}" for what, count in faults.most_common())
    nodes = len({attempt.node for attempt in went})
    hosts = ", ".join(dict.fromkeys(note.place for note in record.quarantined))
    told = [
        f"{faults.total()} attempts lost to faults of machines ({causes})" if faults else "",
        f"{len(went)} attempts moved from {nodes} machine{'s' * (nodes > 1)} that went" if went else "",
        f"in quarantine: {hosts}" if hosts and attempts else "",
        f"tried again with a larger share of a GPU, as memory ran out: {_numbered(again)}" if again else "",
    ]
    return ", ".join(filter(None, told))


def _numbered(numbers: Sequence[int], most: int = 10) -> str:
    """`trial 3, 7`, and of many how many more."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"trial {', '.join(map(str, numbers[:most]))}{more}"


def best_first(trials: Iterable[TrialResult], objective: Objective) -> list[TrialResult]:
    """Trials that have a value, in its order; of equals by number."""
    return sorted(trials, key=lambda trial: (-objective.sign * (trial.value or 0.0), trial.number))


class SearchResult:
    """A search directory, read once. Open it again to see newer reports."""

    def __init__(self, files: SearchFiles, record: SearchRecord, trials: tuple[TrialResult, ...]) -> None:
        self.files = files
        self.record = record
        self.trials = trials

    def is_foreign(self, address: str | None) -> bool:
        """Whether only search.json names an address.

        It is one of neither this machine nor the bucket that was opened. A user who opens ``s3://bucket/search`` has
        named the bucket; a search in a folder names no other machine.
        """
        return address is not None and is_foreign(address, str(self.files.root))

    def __repr__(self) -> str:
        return f"SearchResult({str(self.files.root)!r}, {len(self.trials)} trials)"

    @property
    def objective(self) -> Objective:
        return self.record.objective

    @property
    def faults(self) -> str:
        """See `fault_note`."""
        return fault_note(self.record, self.trials)

    @property
    def usage(self) -> Usage:
        """What all trials took."""
        return added(measured for trial in self.trials for measured in trial.measured)

    def count(self, state: TrialState) -> int:
        return sum(trial.state == state for trial in self.trials)

    @cached_property
    def p_best(self) -> dict[int, float]:
        """How probable it is of each of the best trials that it is the best; empty where unknown.

        Raises:
            IntegrityError: chances.json does not match its format.
        """
        if not exists(self.files.chances):
            return {}
        told = read_record(self.files.chances, Chances, "remove the file")
        if told.completed != self.count("completed"):
            return {}
        return {one.trial: one.p_best for one in told.trials}

    def ranked(self) -> list[TrialResult]:
        """Completed trials, best first; trials that ended otherwise follow, also best first."""
        sign = self.objective.sign

        def key(trial: TrialResult) -> tuple[bool, float, int]:
            value = trial.value
            return (trial.state != "completed", math.inf if value is None else -sign * value, trial.number)

        return sorted(self.trials, key=key)

    def best(self) -> TrialResult:
        """The completed trial whose best report is best.

        Trials stopped early saw less and are not compared with those that finished.

        Raises:
            IchRayError: no trial has completed with a finite objective.
        """
        ranked = self.ranked()
        if not ranked or ranked[0].state != "completed" or ranked[0].value is None:
            states = ", ".join(f"{self.count(state)} {state}" for state in ("running", "pruned", "failed"))
            raise IchRayError(
                f"{self.files.root}: the best trial needs a completed one, got none ({states}); "
                "let the search go on, or raise --trials and add --resume"
            )
        return ranked[0]

    def to_frame(self, reports: bool = False) -> pd.DataFrame:
        """Everything that the ledger holds, as a table; `attrs["search"]` is search.json.

        Args:
            reports: a row per report instead: `number` and the report's fields, a column per metric.

        Returns:
            One row per trial: its record's fields, `value` and `images_seen`, the metrics of its best report, `reports`
            and `lost` attempts as counts, `seconds` of training, what was measured of them (`usage.Usage`), `p_best`
            where it is known, the parameters as `param_*`, and the columns that others registered (`RESULT_COLUMNS`).
            What a trial has not is missing.
        """
        import pandas as pd

        if reports:
            rows = [_report_row(trial, report) for trial in self.trials for report in trial.reports]
        else:
            rows = [
                {**_trial_row(trial), "p_best": self.p_best.get(trial.number), **registered_columns(trial)}
                for trial in self.trials
            ]
        frame = pd.DataFrame(rows)
        frame.attrs["search"] = self.record.model_dump(mode="json")
        return frame


# Of the results beside the record's own, a function of a trial each. One from outside:
# `RESULT_COLUMNS.register("its_name", its_function)`.
RESULT_COLUMNS: Registry[Callable[[TrialResult], Parameter | None]] = Registry("result_columns", {}, home=__name__)


def registered_columns(trial: TrialResult) -> dict[str, Parameter | None]:
    """The value of each registered column, by name.

    Raises:
        ConfigError: a name is taken by what the record itself says.
    """
    values = {name: RESULT_COLUMNS[name](trial) for name in RESULT_COLUMNS.names()}
    own = {*_trial_row(trial), "p_best", *TrialResult.model_fields}
    if taken := sorted(values.keys() & own):
        raise ConfigError(
            f"result_columns: a name must be free, got {taken[0]}, which the results have; choose another"
        )
    return values


def _trial_row(trial: TrialResult) -> dict[str, Any]:
    left_out = {"objective", "parameters", "reports", "checkpoint", "setup", "lost", "grown", "logits"}
    plain = trial.model_dump(exclude=left_out)
    return {
        **vars(trial.usage),
        **plain,
        "lost": len(trial.lost),
        "grown": len(trial.grown),
        "objective": trial.objective.metric,
        "mode": trial.objective.mode,
        "setup": str(trial.setup) if trial.setup else None,
        "value": trial.value,
        "images_seen": trial.images_seen,
        "reports": len(trial.reports),
        "seconds": trial.reports[-1].elapsed_s if trial.reports else 0.0,
        **({"fold_values": trial.fold_values} if trial.fold_values else {}),
        "checkpoint": trial.checkpoint.file if trial.checkpoint else None,
        "logits": trial.logits.file if trial.logits else None,
        "checkpoint_sha256": trial.checkpoint.sha256 if trial.checkpoint else None,
        "checkpoint_images_seen": trial.checkpoint.images_seen if trial.checkpoint else None,
        **trial.metrics,
        **{f"param_{name}": value for name, value in trial.parameters.items()},
    }


def _report_row(trial: TrialResult, report: Report) -> dict[str, Any]:
    of_fold = {"fold": report.fold.number, "fold_value": report.fold.value} if report.fold else {"fold": None}
    plain = report.model_dump(exclude={"metrics", "fold", "usage"})
    used = report.usage or ReportUsage()
    return {"number": trial.number, **plain, **used.model_dump(), **of_fold, **report.metrics}


_REMEDY = "restore the file or start a new search"


def find_search(where: Location) -> SearchFiles:
    """The files of the search in a folder or at a URI.

    Raises:
        ConfigError: there is none, or nobody may read it.
        IntegrityError: a folder in it is a link.
    """
    files = SearchFiles(locate(where))
    if not exists(files.search):
        raise ConfigError(f"{files.root}: a search holds search.json, got none; check the path or run `ich-ray search`")
    files.check_no_links()
    return files


def open_search(where: Location) -> SearchResult:
    """Read a search directory: a local path or a URI, running or finished.

    Raises:
        ConfigError: there is no search there, or nobody may read it.
        IntegrityError: a file of it is damaged, or a folder of it a link.
    """
    files = find_search(where)
    record = read_search_record(files)
    found = [read_trial(files, path) for path in files.records()]
    trials = tuple(sorted(found, key=lambda trial: trial.number))
    return SearchResult(files, record, trials)


def open_network_search(where: Location) -> SearchResult:
    """The same of a search for networks, which alone are confirmed, retrained and made bundles of.

    Raises:
        ConfigError: it is one for something else.
    """
    found = open_search(where)
    if (searches := found.record.space.get("searches", "network")) != "network":
        raise ConfigError(
            f"{found.files.root}: must be a search for networks, got one for a {searches} model; give the search that "
            "its bundle is of"
        )
    return found


def read_search_record(files: SearchFiles) -> SearchRecord:
    """What was asked of a search, as search.json says it by now.

    Raises:
        IntegrityError: the file is damaged.
    """
    return read_record(files.search, SearchRecord, _REMEDY)


def read_trial(files: SearchFiles, path: UPath) -> TrialResult:
    """One of the files in `trials`.

    Raises:
        IntegrityError: it is damaged, or of another trial than its name says.
    """
    trial = read_record(path, TrialResult, _REMEDY)
    if path.name != files.trial(trial.number).name:
        raise IntegrityError(f"{path}: must hold the trial of its name, got number {trial.number}; {_REMEDY}")
    return trial
