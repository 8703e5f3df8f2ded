"""Export a search as TensorBoard event files: a curve per trial and metric over images_seen.

The table of parameters is there too.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from ich_ray.storage import locate, remove

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult

__all__ = ["write_events"]


def write_events(found: SearchResult, folder: UPath) -> None:
    """Write `folder`, whole or not at all, with a folder `trial-00042` for each trial.

    Steps are images_seen and times those of the ledger. `best/<objective>` is the value that a trial is ranked by.
    """
    temporary = locate(folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"))
    temporary.mkdir(parents=True)
    try:
        for trial in found.trials:
            _write(trial, temporary / f"trial-{trial.number:05d}")
        temporary.rename(folder)
    except BaseException:
        remove(temporary)
        raise


def _write(trial: TrialResult, folder: UPath) -> None:
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    with SummaryWriter(str(folder)) as writer:
        for report in trial.reports:
            for name, value in report.scalars.items():
                writer.add_scalar(name, value, report.images_seen, walltime=report.time)
        best, tag = trial.best_report, f"best/{trial.objective.metric}"
        if best is not None:
            writer.add_scalar(tag, best.metrics[trial.objective.metric], trial.images_seen, walltime=best.time)
        described = {**trial.parameters, "state": trial.state, "reason": trial.reason, "seed": trial.seed}
        for summary in hparams(described, {tag: trial.value or 0.0}):
            writer.file_writer.add_summary(summary)
