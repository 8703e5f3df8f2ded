"""Two ways to one gradient over several processes: one sum after the backward pass, and DistributedDataParallel.

Two CPU processes train the same network on the same batches, in turns of a few steps, with batch statistics over both.
DistributedDataParallel is what training uses; the other way sums all gradients as one tensor, without reordering them.
Prints the milliseconds of a step (medians), their ratio by turns with its quartiles, and the largest difference of a
gradient, which says that both are the same.

    python benchmarks/data_parallel.py [--architecture resnet18] [--size 128] [--batch 32] [--turns 20] [--steps 5]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, multiprocessing
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).parents[1]))
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.training.data_parallel import Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKERS = 2


class Way:
    """A network, and how its gradients come together."""

    def __init__(self, parameters: Hyperparameters, size: int, shard: Shard, summed: bool) -> None:
        torch.manual_seed(0)
        network = shard.synchronized(build_network(parameters, (3, size, size)))
        self.weights = list(network.parameters())
        self._network = network if summed else shard.data_parallel(network)
        self._shard, self._summed = shard, summed
        self._optimizer = torch.optim.SGD(self.weights, 1e-3)

    def step(self, images: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
        self._optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(self._network(images), labels, reduction="sum")
        if self._summed:
            (loss / batch).backward()
            self._sum()
        else:
            self._shard.backward(loss * self._shard.scale(batch))
        self._optimizer.step()

    def _sum(self) -> None:
        """All gradients as one tensor, each as its numbers lie in memory."""
        flat = [weight.grad.as_strided((weight.numel(),), (1,)) for weight in self.weights]
        summed = self._shard.total(torch.cat(flat))
        for gradient, part in zip(flat, summed.split([len(one) for one in flat]), strict=True):
            gradient.copy_(part)


def batch_of(rank: int, step: int, batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's images and labels of a global batch."""
    torch.manual_seed(step)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    return images[rank::WORKERS], (torch.rand(batch) < 0.3).float()[rank::WORKERS]


def in_processes(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in WORKERS processes of one thread each that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_joined, (port, work, arguments), nprocs=WORKERS)


def _joined(rank: int, port: int, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=WORKERS)
    work(rank, *arguments)
    distributed.destroy_process_group()


def work(rank: int, asked: argparse.Namespace) -> None:
    parameters = Hyperparameters(architecture=asked.architecture, dropout=0.0)
    own, ddp = (Way(parameters, asked.size, Shard(rank, WORKERS), summed=summed) for summed in (True, False))
    for way in (own, ddp):  # an uneven batch: the share of a worker is not the half
        way.step(*batch_of(rank, 0, asked.batch - 1, asked.size), asked.batch - 1)
    pairs = zip(own.weights, ddp.weights, strict=True)
    apart = max(float((a.grad - b.grad).abs().max() / a.grad.abs().max().clamp(min=1e-12)) for a, b in pairs)
    spent: list[tuple[float, float]] = []
    for turn in range(asked.turns + 1):
        batches = [
            batch_of(rank, 1 + turn * asked.steps + step, asked.batch, asked.size) for step in range(asked.steps)
        ]
        times = {}
        for way in (own, ddp) if turn % 2 else (ddp, own):
            distributed.barrier()
            started = time.perf_counter()
            for images, labels in batches:
                way.step(images, labels, asked.batch)
            times[way] = 1000 * (time.perf_counter() - started) / asked.steps
        spent.append((times[own], times[ddp]))
    if rank == 0:
        report(asked, spent[1:], apart)


def report(asked: argparse.Namespace, spent: list[tuple[float, float]], apart: float) -> None:
    ours, theirs = (statistics.median(column) for column in zip(*spent, strict=True))
    low, middle, high = statistics.quantiles([own / other for own, other in spent], n=4)
    print(f"{asked.architecture}, {asked.size} px, batch {asked.batch} over {WORKERS} CPU processes of one thread")
    print(f"a step: summed after the backward pass {ours:.1f} ms, DistributedDataParallel {theirs:.1f} ms")
    print(f"summed / DistributedDataParallel: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    print(f"largest difference of a gradient, as a share of the largest of its tensor: {apart:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="plain_cnn")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    in_processes(work, parser.parse_args())


if __name__ == "__main__":
    main()
