"""The interfaces of Ray that have no public name, imported here alone.

They may change with any minor version. pyproject.toml caps Ray at the minor version that they were tested with.
"""

from __future__ import annotations

import sys
import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray._private import auto_init_hook, services, worker
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._private.worker import get_dashboard_url
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.schema import ClusterStatus
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get as internal_kv_get
from ray.job_config import JobConfig
from ray.runtime_context import get_runtime_context

from ich_ray.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.tune import PlacementGroupFactory
    from ray.tune.experiment import Trial

__all__ = [
    "DEBUG_AUTOSCALING_STATUS",
    "ClusterStatus",
    "DriverPathJob",
    "GcsClient",
    "ask_anew",
    "drain_node",
    "draining_nodes",
    "forget",
    "forget_authentication",
    "get_cluster_status",
    "get_dashboard_url",
    "internal_kv_get",
    "is_autoscaler_v2",
    "is_unwelcome",
    "output_files",
    "process_of",
    "start_none_unasked",
    "started_within",
    "worker",
]

_ASK_S = 10.0


def start_none_unasked() -> None:
    """Let a call into Ray fail in this process where none is connected, from now on.

    Ray would start one for it: with a dashboard, and a token in the home. Threads of Ray Data outlive the Ray that they
    worked with, and call once more on a busy machine. Linux ends what such a thread has started together with the
    thread, and Ray's core then ends this process without a word.
    """
    auto_init_hook.enable_auto_connect = False


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


def ask_anew(controller: Any, trial: Trial, resources: PlacementGroupFactory) -> None:
    """Let a trial that waits in Tune's queue ask Ray for other resources, at its end.

    Tune looks at resources when a trial enters the queue. Hence out of it and in again, as with one that is paused.
    """
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
    controller.pause_trial(trial, should_checkpoint=False)
    controller._set_trial_status(trial, "PAUSED")  # nothing was paused where Ray was not asked yet
    trial.update_resources(resources)
    controller._set_trial_status(trial, "PENDING")


def process_of(trial: Trial) -> tuple[str, int] | None:
    """The node and number of the process that runs a trial; None where Ray does not know it."""
    actor = getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
    told = state.actor_table(actor._actor_id.hex()) if actor is not None else {}
    return (told["Address"]["NodeID"], told["Pid"]) if told.get("Pid") else None


def output_files() -> list[str]:
    """Files into which Ray puts stdout and stderr of this process; none where it is no worker."""
    this = worker.global_worker
    return [path for path in (this.get_out_file_path(), this.get_err_file_path()) if path]


def draining_nodes() -> dict[str, int]:
    """Ids of nodes that will be taken away, and when: in ms since 1970, or 0 where nobody said."""
    return dict(state.get_draining_nodes())


def drain_node(node: str, why: str, deadline_ms: int) -> None:
    """Say of a node that it will be taken away: Ray starts nothing more there.

    Raises:
        RuntimeError: Ray does not accept it.
    """
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    gcs = GcsClient(address=get_runtime_context().gcs_address)
    accepted, why_not = gcs.drain_node(node, reason, why, deadline_ms)
    if not accepted:
        raise RuntimeError(why_not)


class DriverPathJob(JobConfig):
    """A job whose workers look for modules first where this process looks first.

    Ray puts the working directory of the driver before what is installed there (ray #17518), whether or not the driver
    looks in it: from a folder with another `ich_ray`, workers would run that one.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=[*reversed(_folders_before_installed())])  # each is put before the others

    def _runtime_env_has_working_dir(self) -> bool:
        """Ray asks this only before it adds the working directory and that of the script."""
        return True


def _folders_before_installed() -> list[str]:
    """Where this process looks for modules before the standard library and installed packages.

    The folder of its script, ``PYTHONPATH``, and the working directory only if Python itself looks there first, as with
    ``python -m`` and in a notebook.
    """
    found = []
    library = Path(sysconfig.get_path("stdlib"))
    for entry in sys.path:
        folder = Path(entry).absolute()
        if folder == library or (folder.parent == library.parent and folder.suffix == ".zip"):  # python311.zip
            break
        if not {"site-packages", "dist-packages"} & {*folder.parts}:
            found.append(str(folder))
    return found


def forget_authentication() -> None:
    """Let Ray read its mode and token from the environment again; it keeps both."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def started_within(seconds: float) -> Iterator[None]:
    """Give a Ray that is started in the block this long, in place of the 30 s after which it gives up.

    Its processes import for longer than that where the machine is busy or what is installed lies on a slow share.

    Raises:
        TimeoutError: it has not.
    """
    get_node = services.get_node

    def patient(*arguments: Any) -> Any:
        over = time.monotonic() + seconds
        while True:
            try:
                return get_node(*arguments)  # type: ignore[no-untyped-call]
            except RuntimeError as error:  # what Ray takes for: not yet
                if time.monotonic() > over:
                    raise TimeoutError(first_line(error)) from None
                time.sleep(0.1)

    services.get_node = patient
    try:
        yield
    finally:
        services.get_node = get_node


def is_unwelcome(head: str) -> bool:
    """Whether the head at an address calls the token of this process wrong, or misses one.

    Ray itself asks twenty times, a line of its log each, before it says so.
    """
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with init_grpc_channel(head) as channel:
        try:
            head_node = NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            head_node.GetClusterId(GetClusterIdRequest(), timeout=_ASK_S)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
