"""Retries of a trial whose process died, counted from its last progress and not over its whole life.

Trials of days on machines that come and go lose more processes than a short one, each after many reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune import Callback

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

__all__ = ["TrialRetries"]


class TrialRetries(Callback):
    """Gives a trial all its retries back with each report that is new.

    Args:
        most: retries without a new report between them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[int, int] = {}

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        number, images_seen = trial.config["number"], result.get("images_seen", 0)
        if images_seen > self._seen.get(number, 0):
            self._seen[number] = images_seen
            if trial.max_failures:  # 0 where it has ended already
                trial.max_failures = max(trial.max_failures, trial.num_failures + self._most)
