"""A prepared dataset, read: memory-mapped blocks, rows by role, batches of images on a device.

`prepare` writes these files, everything else only reads them. Decoding happened once: every process on a node maps the
same pages, so a trial starts in milliseconds and costs no memory of its own. Blocks on object storage are fetched once
per node.

Array shapes: images are uint8 `[n, channels, rows, columns]`, labels float32 `[n]`.
"""

from __future__ import annotations

import math
from ctypes import memmove
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa

from ich_ray.cache import local_copy
from ich_ray.ct.windowing import WindowSpec
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.results import LEAK, Split
from ich_ray.storage import (
    DatasetFiles,
    Location,
    Record,
    RelativeFile,
    is_local,
    locate,
    read_record,
    read_table,
    sha256,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from upath import UPath

__all__ = [
    "LABELS",
    "ROLES",
    "BlockRecord",
    "DatasetManifest",
    "PlacedImages",
    "Placement",
    "PreparedDataset",
    "Role",
    "RoleCounts",
    "SliceSet",
    "as_index",
    "fits_device",
    "map_block",
    "place",
]

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS = (*SUBTYPES, "any")
Role = Literal["train", "validation", "calibration", "test"]
ROLES: tuple[Role, ...] = ("train", "validation", "calibration", "test")

Placement = Literal["auto", "device", "host"]

# Of the accelerator memory of a trial; the rest is for weights, activations and gradients.
DEVICE_SHARE = 0.5

# Buffers of page-locked memory: one is filled while one is copied and one waits for its turn.
_STAGES = 3


class BlockRecord(Record):
    """One Arrow IPC file, relative to the dataset folder."""

    file: RelativeFile
    rows: int
    sha256: str


class RoleCounts(Record):
    """Accepted slices of a role; `positives` are those with `any`."""

    slices: int
    patients: int
    positives: int


class DatasetManifest(Record):
    """dataset.json. Every listed file is counted once: listed = accepted + rejected + duplicate + excluded.

    Attributes:
        fingerprint: of the pixels, labels and roles: equal for equal input, whatever the order of the work.
        reasons: rows of rejected.parquet by reason code.
        labels: positive accepted slices by label.
        split: what roles and folds were drawn by; `slice` leaks.
    """

    format: Literal[1] = 1
    fingerprint: str
    size: int
    windows: tuple[WindowSpec, ...]
    blocks: tuple[BlockRecord, ...]
    listed: int
    accepted: int
    rejected: int
    duplicate: int
    excluded: int
    reasons: dict[str, int]
    roles: dict[Role, RoleCounts]
    labels: dict[str, int]
    notes: tuple[str, ...] = ()
    split: Split = "patient"
    seed: int
    versions: dict[str, str]
    created: float

    @property
    def leak(self) -> str:
        """Why no figure of this dataset holds for patients it has not seen; empty if nothing is wrong."""
        return LEAK if self.split == "slice" else ""


@dataclass(frozen=True)
class SliceSet:
    """Some slices of a dataset, in a fixed order, with everything but the pixels in memory.

    Attributes:
        rows: positions in slices.parquet, int64 `[n]`.
        labels: 1.0 where `any` is positive, float32 `[n]`.
        patients: pseudonyms, `[n]`.
    """

    dataset: PreparedDataset
    rows: NDArray[np.int64]
    labels: NDArray[np.float32] = field(init=False)
    patients: NDArray[np.object_] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.dataset.label("any")[self.rows])
        object.__setattr__(self, "patients", self.dataset.column("patient")[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prevalence(self) -> float:
        return float(self.labels.mean()) if len(self) else 0.0

    @property
    def image_bytes(self) -> int:
        return len(self) * math.prod(self.dataset.image_shape)

    def gather(self, positions: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Images at `positions` of this set, uint8 `[len(positions), channels, rows, columns]`."""
        return self.dataset.gather(self.rows[positions], out)


class PreparedDataset:
    """A dataset directory opened for reading."""

    def __init__(self, files: DatasetFiles, manifest: DatasetManifest) -> None:
        self.files = files
        self.manifest = manifest

    @classmethod
    def open(cls, where: Location, verify: bool = False, *, fingerprint: str | None = None) -> PreparedDataset:
        """Open a dataset, in milliseconds: blocks are mapped when first read.

        Args:
            where: the folder that `prepare` wrote.
            verify: read every block and compare its SHA-256 with the manifest.
            fingerprint: of the dataset that must lie there, as a search wrote it down.

        Raises:
            ConfigError: there is no dataset.
            IntegrityError: a file is damaged or missing, named; or another dataset lies there.
        """
        files = DatasetFiles(locate(where))
        if not files.manifest.exists():
            raise ConfigError(
                f"{files.root}: a prepared dataset holds dataset.json, got none; run `ich-ray prepare` first"
            )
        manifest = read_record(files.manifest, DatasetManifest, "prepare the dataset again")
        if fingerprint not in {None, manifest.fingerprint}:
            raise IntegrityError(
                f"{files.root}: the fingerprint must be {fingerprint}, that of the search, got {manifest.fingerprint}; "
                "put the dataset back where every machine sees it, or search again"
            )
        # One listing: object storage takes 50 ms to say that one file exists.
        there = {path.name for path in files.blocks.iterdir()} if files.blocks.exists() else set()
        for block in manifest.blocks:
            path = files.root / block.file
            if path.name not in there:
                raise IntegrityError(f"{path}: a block of the dataset must be there; prepare the dataset again")
            if verify and sha256(path) != block.sha256:
                raise IntegrityError(f"{path}: SHA-256 must equal the manifest's; prepare the dataset again")
        return cls(files, manifest)

    def __repr__(self) -> str:
        return f"PreparedDataset({str(self.files.root)!r}, {self.manifest.accepted} slices)"

    def __len__(self) -> int:
        return self.manifest.accepted

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(channels, rows, columns)`."""
        return (len(self.manifest.windows), self.manifest.size, self.manifest.size)

    @cached_property
    def slices(self) -> pa.Table:
        """slices.parquet: one row per accepted slice."""
        return read_table(self.files.slices)

    def column(self, name: str) -> NDArray[np.object_]:
        return np.asarray(self.slices[name].to_numpy(zero_copy_only=False))

    def label(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.slices[name].to_numpy(), np.float32)

    def role(self, role: Role) -> SliceSet:
        """The slices of one role."""
        return SliceSet(self, np.flatnonzero(self.column("role") == role))

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block and row of each slice; every row lies in its block, so that addresses made of them are valid."""
        blocks, rows = (self.slices[name].to_numpy().astype(np.int64) for name in ("block", "row"))
        lengths = np.array([block.rows for block in self.manifest.blocks], np.int64)
        if (blocks < 0).any() or (blocks >= len(lengths)).any() or (rows < 0).any() or (rows >= lengths[blocks]).any():
            raise IntegrityError(f"{self.files.slices}: each slice must lie in a block; prepare the dataset again")
        return blocks, rows

    @cached_property
    def _blocks(self) -> dict[int, NDArray[np.uint8]]:
        """The blocks mapped so far."""
        return {}

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The address of each block, 0 until it is mapped."""
        return np.zeros(len(self.manifest.blocks), np.int64)

    def gather(self, rows: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Images of rows of slices.parquet, uint8 `[len(rows), channels, rows, columns]`.

        One memmove per image: 3 times as fast as indexing block by block, and as fast as copying memory in a row.
        """
        shape = (len(rows), *self.image_shape)
        out = np.empty(shape, np.uint8) if out is None else out
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out must be a contiguous uint8 array of shape {shape}, got {out.dtype} {out.shape}")
        blocks, places = (place[rows] for place in self._places)
        for block in np.unique(blocks[self._starts[blocks] == 0]).tolist():
            self._blocks[block] = self._map(block)
            self._starts[block] = self._blocks[block].ctypes.data
        image_bytes = math.prod(self.image_shape)
        target = out.ctypes.data
        for address in (self._starts[blocks] + places * image_bytes).tolist():
            memmove(target, address, image_bytes)
            target += image_bytes
        return out

    def _map(self, block: int) -> NDArray[np.uint8]:
        record = self.manifest.blocks[block]
        path = self.files.root / record.file
        if not is_local(path):
            path = locate(local_copy(path, record.sha256, self.manifest.fingerprint))
        images = map_block(path)
        if images.shape != (record.rows, *self.image_shape):
            raise IntegrityError(
                f"{self.files.root / record.file}: {record.rows} images of {self.image_shape} must be there, got "
                f"{images.shape}; prepare the dataset again"
            )
        return images


def map_block(path: UPath) -> NDArray[np.uint8]:
    """The images of a block, without copying: pages are read from the file when touched, and are read-only.

    A block on object storage is read into memory.
    """
    try:
        with pa.memory_map(str(path)) if is_local(path) else pa.BufferReader(path.read_bytes()) as source:
            chunks = pa.ipc.open_file(source).read_all()["image"].chunks
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise IntegrityError(f"{path}: must be a block of images, got {error}; prepare the dataset again") from None
    if len(chunks) != 1:
        raise IntegrityError(f"{path}: one record batch per block must hold, got {len(chunks)}")
    return np.asarray(chunks[0].to_numpy_ndarray())


class PlacedImages(Protocol):
    """Images ready to be taken in batches.

    Attributes:
        where: `device` when they all lie in accelerator memory, else `host`.
    """

    where: str

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        """uint8 `[len(positions), channels, rows, columns]` on the device."""


class _HostImages:
    """Batches gathered from the mapped blocks."""

    where = "host"

    def __init__(self, slices: SliceSet, device: torch.device) -> None:
        self._slices, self._device = slices, device

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._slices.gather(positions)).to(self._device)


class _StagedImages:
    """Batches gathered into page-locked memory and copied beside the computation.

    `take` returns before the copy is over: it waits for nothing but its own buffer, and the computation waits for the
    copy on the device. So while the device works on one batch, the next is gathered and copied, as long as its caller
    reads nothing back in between.
    """

    where = "host"

    def __init__(self, slices: SliceSet, device: torch.device) -> None:
        import torch

        self._slices, self._device = slices, device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(_STAGES)]
        self._copied = [torch.cuda.Event() for _ in range(_STAGES)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        import torch

        turn, self._turn = self._turn, (self._turn + 1) % _STAGES
        self._copied[turn].synchronize()  # the last batch from this buffer is on the device; at once if there was none
        shape = (len(positions), *self._slices.dataset.image_shape)
        if self._buffers[turn].numel() < math.prod(shape):
            self._buffers[turn] = torch.empty(math.prod(shape), dtype=torch.uint8, pin_memory=True)
        staged = self._buffers[turn][: math.prod(shape)].view(shape)
        self._slices.gather(positions, staged.numpy())
        with torch.cuda.stream(self._copies):
            images = staged.to(self._device, non_blocking=True)
            self._copied[turn].record(self._copies)
        computation = torch.cuda.current_stream(self._device)
        computation.wait_event(self._copied[turn])
        images.record_stream(computation)  # its memory is of the other stream, which must not take it back early
        return images


class _DeviceImages:
    """All images in the memory of the device, gathered there."""

    where = "device"

    def __init__(self, slices: SliceSet, device: torch.device) -> None:
        import torch

        self._images = torch.empty((len(slices), *slices.dataset.image_shape), dtype=torch.uint8, device=device)
        for start in range(0, len(slices), 4096):
            positions = np.arange(start, min(start + 4096, len(slices)))
            self._images[start : start + len(positions)] = torch.from_numpy(slices.gather(positions)).to(device)

    def take(self, positions: NDArray[np.int64]) -> torch.Tensor:
        return self._images.index_select(0, as_index(positions, self._images.device))


def as_index(positions: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """`positions` on the device, without waiting for what it has to do before, as a copy of usual memory would."""
    import torch

    index = torch.from_numpy(positions)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


def fits_device(needed_bytes: int, free_bytes: int, total_bytes: int, *, taken_bytes: int = 0, trials: int = 1) -> bool:
    """Whether a trial may keep so many bytes of images in the memory of its accelerator.

    It may use DEVICE_SHARE of its own part, an equal one for each of `trials` on the device whether they have started
    or not; and never more than that share of what is free now.

    Args:
        needed_bytes: to be kept.
        free_bytes: what no process uses.
        total_bytes: all of it.
        taken_bytes: images that the trial keeps there already.
        trials: on this device at a time.
    """
    own_bytes = min(total_bytes / trials, free_bytes + taken_bytes)
    return needed_bytes + taken_bytes <= DEVICE_SHARE * own_bytes


def place(
    slices: SliceSet, device: torch.device, where: Placement = "auto", *, taken_bytes: int = 0, trials: int = 1
) -> PlacedImages:
    """Put the images of `slices` where batches are taken fastest.

    Args:
        slices: the images, in the order of their positions.
        device: where batches are wanted.
        where: `device` for all at once, `host` for batch after batch; `auto` is `device` if that is an accelerator and
            `fits_device` says so, else `host`.
        taken_bytes: images of the same trial that are on the device already.
        trials: that share the device.

    Raises:
        torch.OutOfMemoryError: `device` was asked for and has no room.
    """
    import torch

    if where == "device" or (
        where == "auto" and device.type == "cuda" and _may_stay(slices, device, taken_bytes, trials)
    ):
        try:
            return _DeviceImages(slices, device)
        except torch.OutOfMemoryError:  # another process was faster
            if where == "device":
                raise
    return _StagedImages(slices, device) if device.type == "cuda" else _HostImages(slices, device)


def _may_stay(slices: SliceSet, device: torch.device, taken_bytes: int, trials: int) -> bool:
    import torch

    return fits_device(slices.image_bytes, *torch.cuda.mem_get_info(device), taken_bytes=taken_bytes, trials=trials)
