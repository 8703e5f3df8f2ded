"""Accelerators of a connected cluster: the precision that all of them share, the memory of each.

Each machine is asked once, when a search begins or when it comes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import ray

from ich_ray.errors import IchRayError
from ich_ray.machines import nodes_up, on_node
from ich_ray.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ich_ray.vocabulary import Precision

__all__ = ["common_precision", "device_memories", "least_capability", "least_memory"]

_NONE = (0, 0)
# A process of its own, because it holds memory of every device that it asks.
_ASK = """
import torch
devices = range(torch.cuda.device_count())
found = [torch.cuda.get_device_capability(device) for device in devices]
memory = [torch.cuda.get_device_properties(device).total_memory for device in devices]
print(*min(found, default=(0, 0)), min(memory, default=0))
"""
_ANSWER_WITHIN_S = 120
# As `nvidia-smi -L` lists slices of a GPU: a process sees one of them alone, whatever it is shown.
_SLICE = re.compile(r"^\s+MIG \S*?(\d+)gb\b", re.MULTILINE)


def common_precision(gpus_per_trial: float) -> Precision:
    """The precision in which every trial can compute, by the least capable accelerator.

    Machines that are up count. Where none with an accelerator is up yet, that of the first one that comes.

    Raises:
        IchRayError: no machine says what it has.
    """
    if not gpus_per_trial:
        return "float32"
    from ich_ray.training.precision import precision_of

    with_gpus = [node for node in nodes_up() if node["Resources"].get("GPU")]
    if with_gpus:
        asked = {on_node(node["NodeID"], least_capability): node["NodeManagerAddress"] for node in with_gpus}
    else:
        say("waiting for the first machine with a GPU, whose kind decides the precision of the search")
        asked = {ray.remote(num_cpus=0, num_gpus=gpus_per_trial)(least_capability).remote(): "the first one"}
    told = [_told(reference, machine) for reference, machine in asked.items()]
    if not any(told):
        raise IchRayError(
            "GPU: a machine must tell the capability of its own, got none that does; check them with `ich-ray doctor`"
        )
    return precision_of(min((known for known in told if known and known > _NONE), default=_NONE))


def _told(reference: ray.ObjectRef[tuple[int, int]], machine: str) -> tuple[int, int] | None:
    """None of a machine that does not tell: one that is sick changes nothing for others, who are given its trials."""
    capability, problem = None, "none"
    try:
        capability = ray.get(reference)
    except ray.exceptions.RayError as error:
        problem = str(error).strip().splitlines()[-1]
    if capability is None or capability == _NONE:
        say(f"machine {machine}: PyTorch must see its GPUs, got {problem}; check it with `ich-ray doctor`")
    return capability


def device_memories(nodes: Iterable[str]) -> dict[str, int]:
    """Bytes of the smallest accelerator of each machine, by Ray's ids; 0 where it has not said so."""
    asked = {node: on_node(node, least_memory) for node in nodes}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_WITHIN_S)
    return {node: _memory(reference) if reference in ready else 0 for node, reference in asked.items()}


def _memory(reference: ray.ObjectRef[int]) -> int:
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayError:
        return 0


def least_capability() -> tuple[int, int]:
    """The compute capability of this machine's least accelerator, (0, 0) without any."""
    major, minor, _ = _least()
    return major, minor


def least_memory() -> int:
    """Bytes of this machine's smallest accelerator, or slice of one (MIG); 0 without any."""
    *_, seen = _least()
    command = shutil.which("nvidia-smi")
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=False).stdout if command else ""
    return min([seen, *(int(size) * 10**9 for size in _SLICE.findall(listed))]) if seen else 0


def _least() -> tuple[int, int, int]:
    everything = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    told = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, env=everything)
    major, minor, memory = told.stdout.split()
    return int(major), int(minor), int(memory)
