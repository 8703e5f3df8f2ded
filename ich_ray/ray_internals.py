"""The interfaces of Ray that have no public name, imported here alone.

They may change with any minor version. pyproject.toml caps Ray at the minor version that they were tested with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray._private import worker
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.worker import get_dashboard_url
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get as internal_kv_get

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

__all__ = [
    "DEBUG_AUTOSCALING_STATUS",
    "GcsClient",
    "forget",
    "get_cluster_status",
    "get_dashboard_url",
    "internal_kv_get",
    "is_autoscaler_v2",
    "worker",
]


def forget(trial: Trial) -> None:
    """Drop what Tune holds of a trial that has ended until the search is over.

    For a trial of four reports and three parameters that is running means of every number in a result, config included
    (26 KB), the last result and the parameters once more (2.5 KB), and a reference to what its worker said
    first, which keeps the answer in Ray's own memory (1.5 KB). The ledger has the reports.
    """
    # Where Ray calls it otherwise, it stays. Before the others: without a result Tune would wait for it.
    if hasattr(trial, "_default_result_or_future"):
        trial._default_result_or_future = None
    for held in (trial.metric_analysis, trial.metric_n_steps, trial.last_result, trial.evaluated_params):
        held.clear()
