"""Ray Data, set up in one way for every stage that maps items of its own over a cluster."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.errors import IchRayError
from ich_ray.registry import registered_here, repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from ich_ray.registry import Registration

__all__ = ["map_in_order"]

# Of a traceback; below the line of the error that was raised Ray adds one of its own.
_ERROR = re.compile(r"(?!ray\.exceptions\.UserCodeException)[\w.]+(Error|Exception|Exit|Interrupt)\b")


def map_in_order(
    items: Sequence[Mapping[str, Any]],
    worker: Callable[..., Any],
    *arguments: Any,
    rule: str,
    hint: str,
    gpus: float = 0,
) -> Iterator[pa.Table]:
    """The table that a worker makes of each item, in the order of the items. Ray must be connected.

    What is registered in this process is registered where the work is done.

    Args:
        items: plain values by name; each is a task of its own.
        worker: a function, called with `arguments` and an item; or a class, made with `arguments` in each process of a
            pool, one for each CPU, which share the accelerators, and then called with an item.
        arguments: of every worker; they travel through Ray.
        rule: of the error, such as `predict: every batch must end`.
        hint: of the error, what to do next.
        gpus: of each call of a function.

    Raises:
        IchRayError: an item could not be finished.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.op_resource_reservation_enabled = False  # it leaves one of two CPUs without work
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # after the first use of ray.data, which sets it
    settings: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 1}
    task: Any = _Task(worker, arguments, registered_here())
    if isinstance(worker, type):
        settings |= _pool(len(items)) | {"fn_constructor_args": (task,)}
        task = _Worker
    else:
        settings["num_gpus"] = gpus
    mapped = ray.data.from_items(list(items), override_num_blocks=len(items)).map_batches(task, **settings)
    try:
        yield from mapped.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayError as error:
        raise IchRayError(f"{rule}, got {_reason(error)}; {hint}") from None


def _pool(items: int) -> dict[str, Any]:
    """A process for each CPU, but no more than there are items; accelerators are shared among them."""
    import ray

    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = max(1, min(int(total.get("CPU", 1)), items))
    return {
        "compute": ray.data.ActorPoolStrategy(size=workers),
        "num_gpus": int(100 * total.get("GPU", 0) / workers) / 100,
    }


def _reason(error: BaseException) -> str:
    """What ended the work: the last error that the traceback names."""
    lines = [line for line in str(error).splitlines() if _ERROR.match(line)]
    return lines[-1] if lines else type(error).__name__


@dataclass(frozen=True)
class _Task:
    """A call of a function, as Ray Data makes it."""

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    registered: tuple[Registration, ...]

    def __call__(self, batch: pa.Table) -> pa.Table:
        repeat(self.registered)
        (item,) = batch.to_pylist()
        return self.work(*self.arguments, item)


class _Worker:
    """A process of a pool of Ray Data."""

    def __init__(self, task: _Task) -> None:
        repeat(task.registered)
        self._work = task.work(*task.arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (item,) = batch.to_pylist()
        return self._work(item)
