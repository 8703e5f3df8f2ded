"""A training whose every value follows from all steps before it, so that a lost or doubled step is seen in the next.

It costs nothing but time, counts its images in a file for each attempt, and asks at every step what is planted on its
machine: a disk that is full (a real one where one can be mounted), a device that fails, a storage that is slow, fails
for a moment or has no room.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.search.tune.lost_attempts import node_id
from ich_ray.storage import retries, sha256
from tests.search.fakes import FakeProgress, FakeState, curve

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.tune.trial import TrialSettings

IMAGES_A_STEP = 10
SCRATCH_BYTES = 16_384


@dataclass(frozen=True)
class ChainState(FakeState):
    """What a training is after some images: the digest of all its steps."""

    digest: str = ""

    def packed(self) -> bytes:
        return json.dumps({"images_seen": self.images_seen, "digest": self.digest}).encode()

    def stepped(self) -> ChainState:
        seen = self.images_seen + IMAGES_A_STEP
        return ChainState(seen, digest=sha256(f"{self.digest} {seen}".encode()))

    def value(self, parameters: Hyperparameters) -> float:
        return curve(parameters, self.images_seen) + 0.02 * int(self.digest[:12], 16) / 16**12


@dataclass(frozen=True)
class ChainProgress(FakeProgress):
    """A report with the state that it was made of."""

    digest: str = ""

    def state(self) -> ChainState:
        return ChainState(self.images_seen, digest=self.digest)


def begun(parameters: Hyperparameters, seed: int) -> ChainState:
    return ChainState(0, digest=sha256(f"{seed} {parameters.model_dump_json()}".encode()))


def undisturbed(parameters: Hyperparameters, seed: int, images: int, report_every: int) -> dict[int, float]:
    """The value of each report of a training that nothing has interrupted."""
    state, values = begun(parameters, seed), {}
    while state.images_seen < images:
        state = state.stepped()
        if not state.images_seen % report_every:
            values[state.images_seen] = state.value(parameters)
    return values


@dataclass(frozen=True)
class ChainTrainer:
    """Trains as above.

    Attributes:
        folder: of the run: `attempts/` gets a file for each attempt, `machines/NODE/` says what is planted there.
        step_s: for each step.
    """

    folder: str
    step_s: float

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: UPath | None,
    ) -> Generator[ChainProgress, None, None]:
        assert dataset.manifest.fingerprint == settings.fingerprint
        state = ChainState(**json.loads(resume.read_text())) if resume else begun(parameters, seed)
        machine = Path(self.folder) / "machines" / node_id()
        plant_storage(machine)
        name = f"{Path(settings.search).name}-{seed}-{time.time_ns()}.txt"
        started = time.monotonic()
        with (Path(self.folder) / "attempts" / name).open("w", buffering=1) as log:
            log.write(f"{node_id()} {os.getpid()} {state.images_seen} {time.time()}\n")
            while state.images_seen < settings.images:
                for _ in range(settings.report_every // IMAGES_A_STEP):
                    time.sleep(self.step_s)
                    use_device(machine)
                    use_disk(machine)
                    state = state.stepped()
                    log.write(f"{state.images_seen} {time.time()}\n")
                metrics = {"average_precision": state.value(parameters), "train_loss": 1.0}
                yield ChainProgress(state.images_seen, metrics, time.monotonic() - started, digest=state.digest)


def use_device(machine: Path) -> None:
    if (machine / "poisoned").exists():
        import torch

        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered (planted)")


def use_disk(machine: Path) -> None:
    """Write what trainings leave on a machine's own disk."""
    if (machine / "full").exists():  # where no disk can be mounted
        raise OSError(errno.ENOSPC, "No space left on device (planted)", str(machine / "disk"))
    if (machine / "disk").exists():
        scratch = machine / "disk" / str(os.getpid())
        scratch.write_bytes(bytes(SCRATCH_BYTES))
        scratch.unlink()


_real = retries.attempt


def plant_storage(machine: Path) -> None:
    """Let every access of this process to the search's folder meet what is planted on its machine."""

    def attempt(do: Callable[[], Any]) -> Any:
        if slow := said(machine / "slow"):
            time.sleep(float(slow))
        if (machine / "failing").exists():
            raise OSError(errno.EIO, "Input/output error (planted)")
        if (machine / "unmounted").exists():
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected (planted)")
        if (machine / "no_room").exists() and "write" in do.__qualname__:
            raise OSError(errno.ENOSPC, "No space left on device (planted)")
        return _real(do)

    retries.attempt = attempt


def said(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
