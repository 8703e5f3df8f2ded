"""A prepared dataset, read: memory-mapped blocks, rows by role, images gathered from them.

`prepare` writes these files, everything else only reads them. Decoding happened once: every process on a node maps the
same pages, so a trial starts in milliseconds and costs no memory of its own. Blocks on object storage are fetched once
per node.

Array shapes: images are uint8 `[n, channels, rows, columns]`, labels float32 `[n]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, field_validator

from ich_ray.cache import local_copy
from ich_ray.ct.head_box import HEAD_BOX
from ich_ray.ct.windowing import MOST_WINDOWS, WindowSpec
from ich_ray.data.neighbors import series_neighbors
from ich_ray.data.read_ahead import MappedImages, map_at_random
from ich_ray.data.series_survey import number_series, numbers
from ich_ray.data.shown_rectangles import series_boxes
from ich_ray.data.slice_table import check_columns, places_of
from ich_ray.data.tensor_files import check_size, malformed, map_tensors
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.progress import say
from ich_ray.storage import (
    Count,
    DatasetFiles,
    Fingerprint,
    Line,
    Location,
    Record,
    RelativeFile,
    Seed,
    Sha256,
    Share,
    Time,
    exists,
    is_local,
    locate,
    read_record,
    read_table,
    sha256,
    unreadable,
)
from ich_ray.vocabulary import LABELS, LEAK, ROLES, Level, MatchRule, Role, Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.results import SearchResult

__all__ = [
    "LARGEST_SIZE",
    "THICKEST_SLAB_MM",
    "BlockRecord",
    "DatasetManifest",
    "ExaminationRecord",
    "PreparedDataset",
    "ReaderAgreement",
    "RoleCounts",
    "SliceSet",
    "map_block",
]

# What a manifest may say of the shape of an image, and `prepare` makes: more is more memory than anybody has.
LARGEST_SIZE = 1024
THICKEST_SLAB_MM = 20.0
_MOST_ROWS = 2**31
# What Arrow writes around the images of a block is 1 kB.
_BLOCK_OVERHEAD_BYTES = 1 << 16
_BLOCK, _REMEDY = "must be a block of images", "prepare the dataset again"


class BlockRecord(Record):
    """One Arrow IPC file, relative to the dataset folder."""

    file: RelativeFile
    rows: int = Field(ge=1, le=_MOST_ROWS)
    sha256: Sha256


class RoleCounts(Record):
    """Accepted slices of a role; `positives` are those with `any`."""

    slices: Count
    patients: Count
    positives: Count


class ReaderAgreement(Record):
    """How far several readers of a label agree, over the rows of the label table.

    Attributes:
        rows: that two readers or more answered.
        pairs_agree: of all pairs of answers to a row the share that is equal.
        kappa: Fleiss' kappa of the rows that all answered; None where it is undefined.
        ties: rows without a majority, taken for unknown.
        disputed: rows that show haemorrhage by majority, but no kind by majority: this one is taken for unknown.
    """

    label: Line
    readers: Count
    rows: Count
    pairs_agree: Share | None
    kappa: float | None = Field(ge=-1, le=1)
    ties: Count
    disputed: Count = 0

    def __str__(self) -> str:
        pairs, kappa = ("-" if one is None else f"{one:.3f}" for one in (self.pairs_agree, self.kappa))
        disputed = f"; {self.disputed} disputed by kind are unknown" if self.disputed else ""
        return (
            f"{self.label}: {self.readers} readers of {self.rows} rows: pairs agree {pairs}, Fleiss' kappa {kappa}; "
            f"{self.ties} ties are unknown{disputed}"
        )


class ExaminationRecord(Record):
    """examinations.parquet: labels of series, studies or patients, which are no labels of slices.

    Attributes:
        level: what a row is about.
        positives: rows with `any`.
        contradictions: how many contradict labels of their slices, by kind.
        agreement: of the readers of their own table, where slices have another.
    """

    level: Level
    rows: Count
    positives: Count
    sha256: Sha256
    contradictions: dict[Line, Count]
    agreement: tuple[ReaderAgreement, ...] = Field((), max_length=len(LABELS))


class DatasetManifest(Record):
    """dataset.json. Every listed file is counted once, and each frame of a file of several.

    listed = accepted + rejected + duplicate + excluded.

    Attributes:
        fingerprint: of the pixels, labels and roles: equal for equal input, whatever the order of the work.
        reasons: rows of rejected.parquet by reason code.
        labels: positive accepted slices by label.
        split: what roles and folds were drawn by; `slice` leaks.
        matched_by: how the ids of the label table named slices.
        agreement: of the readers of the label table, where a label has several.
        level: what the label table is about; where it is no slice, no slice has a label.
        examinations: labels of series, studies or patients; None where there are none.
        slices_sha256: of slices.parquet; empty in datasets of older versions.
        identities: the name of the table that leads back from its pseudonyms, see identities.py; empty in datasets of
            older versions, where slice ids and file names stand in the clear.
        slab_mm: to which series finer than half of it were averaged, see ct/slabs.py; 0 for none.
    """

    format: Literal[1] = 1
    fingerprint: Fingerprint
    size: int = Field(ge=1, le=LARGEST_SIZE)
    windows: tuple[WindowSpec, ...] = Field(min_length=1, max_length=MOST_WINDOWS)
    blocks: tuple[BlockRecord, ...]
    listed: Count
    accepted: Count
    rejected: Count
    duplicate: Count
    excluded: Count
    reasons: dict[Line, Count]
    roles: dict[Role, RoleCounts]
    labels: dict[Line, Count]
    notes: tuple[Line, ...] = ()
    split: Split = "patient"
    matched_by: MatchRule = "uid"
    agreement: tuple[ReaderAgreement, ...] = Field((), max_length=len(LABELS))
    level: Level = "slice"
    examinations: ExaminationRecord | None = None
    slices_sha256: Sha256 | Literal[""] = ""
    identities: Fingerprint | Literal[""] = ""
    slab_mm: float = Field(default=0, ge=0, le=THICKEST_SLAB_MM, allow_inf_nan=False)
    seed: Seed
    versions: dict[Line, Line]
    created: Time

    @field_validator("blocks")
    @classmethod
    def _named_once(cls, blocks: tuple[BlockRecord, ...]) -> tuple[BlockRecord, ...]:
        """A file that is named again and again would be hashed again and again."""
        if len({block.file for block in blocks}) < len(blocks):
            raise ValueError("each block must be named once")
        return blocks

    @field_validator("roles")
    @classmethod
    def _every_role(cls, roles: dict[Role, RoleCounts]) -> dict[Role, RoleCounts]:
        """A role that is not there has no slices."""
        return {role: RoleCounts(slices=0, patients=0, positives=0) for role in ROLES} | roles

    @property
    def leak(self) -> str:
        """Why no figure of this dataset holds for patients it has not seen; empty if nothing is wrong."""
        return LEAK if self.split == "slice" else ""

    @property
    def clear(self) -> bool:
        """Whether its tables hold SOPInstanceUIDs and file names as they are."""
        return not self.identities


@dataclass(frozen=True)
class SliceSet:
    """Some slices of a dataset, in a fixed order, with everything but the pixels in memory.

    Attributes:
        rows: positions in slices.parquet, int64 `[n]`.
        patients: pseudonyms, `[n]`.
    """

    dataset: PreparedDataset
    rows: NDArray[np.int64]
    patients: NDArray[np.object_] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patients", self.dataset.column("patient")[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """1.0 where `any` is positive, float32 `[n]`.

        Raises:
            ConfigError: labels are of studies and the like, see `check_level`.
        """
        self.dataset.check_level()
        return np.asarray(self.dataset.label("any")[self.rows])

    @property
    def prevalence(self) -> float:
        return float(self.labels.mean()) if len(self) else 0.0

    def targets(self, labels: Sequence[str]) -> NDArray[np.float32]:
        """0 or 1, NaN where unknown, float32 `[n, labels]`.

        A slice without any haemorrhage has no subtype, whether or not the label table says so of each.
        """
        found = np.stack([self.dataset.label(name)[self.rows] for name in labels], 1)
        found[np.isnan(found) & (self.labels == 0)[:, None]] = 0
        return found

    def positive_patients(self, label: str) -> int:
        """Patients with a slice that shows it."""
        return len(set(self.patients[self.dataset.label(label)[self.rows] == 1]))

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
            verify: read slices.parquet and every block, and compare them with the manifest.
            fingerprint: of the dataset that must lie there, as a search wrote it down.

        Raises:
            ConfigError: there is no dataset.
            IntegrityError: a file is damaged or missing, named; or another dataset lies there.
        """
        files = DatasetFiles(locate(where))
        if not exists(files.manifest):
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
        there = {path.name for path in files.blocks.iterdir()} if files.blocks.is_dir() else set()
        for block in manifest.blocks:
            path = files.root / block.file
            if path.name not in there:
                raise IntegrityError(f"{path}: a block of the dataset must be there; prepare the dataset again")
        dataset = cls(files, manifest)
        if verify:
            dataset.check_table()
            dataset._verify(range(len(manifest.blocks)), copied=False)
        return dataset

    @classmethod
    def of_search(cls, found: SearchResult, where: Location | None = None) -> PreparedDataset:
        """Open the dataset of a search: at `where`, or at the place that search.json names.

        An address that nobody but search.json has named is said before it is contacted.

        Raises:
            ConfigError: there is no dataset.
            IntegrityError: a file is damaged or missing, named; or another dataset lies there.
        """
        if where is None and found.is_foreign(found.record.dataset_folder):
            say(f"reading the dataset at {found.record.dataset_folder}, which search.json names")
        return cls.open(found.record.dataset_folder if where is None else where, fingerprint=found.record.fingerprint)

    def __repr__(self) -> str:
        return f"PreparedDataset({str(self.files.root)!r}, {self.manifest.accepted} slices)"

    def __len__(self) -> int:
        return self.manifest.accepted

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(channels, rows, columns)`."""
        return (len(self.manifest.windows), self.manifest.size, self.manifest.size)

    @property
    def images_bytes(self) -> int:
        """Of all its images, which its blocks hold and little else."""
        return sum(block.rows for block in self.manifest.blocks) * math.prod(self.image_shape)

    @cached_property
    def slices(self) -> pa.Table:
        """slices.parquet: one row per accepted slice.

        Raises:
            IntegrityError: it is missing, damaged, without a column that everything needs, or of other types or rows.
            ConfigError: nobody may read it.
        """
        path = self.files.slices
        try:
            table = read_table(path, self.manifest.accepted)
            check_columns(table, LABELS, ROLES, labeled=self.manifest.level == "slice")
        except FileNotFoundError:
            raise _no_table(path) from None
        except OSError as error:
            raise unreadable(path, error) from None
        except ValueError as error:
            raise IntegrityError(f"{path}: {error}; {_REMEDY}") from None
        return table

    @cached_property
    def examinations(self) -> pa.Table:
        """examinations.parquet: a row for each series, study or patient with a label.

        Raises:
            ConfigError: there are no such labels.
            IntegrityError: it is missing, or not the one that was prepared.
        """
        record, path = self.manifest.examinations, self.files.examinations
        if record is None:
            raise ConfigError(f"{self.files.root}: labels of examinations must be there, got none; prepare with them")
        if not path.is_file():
            raise IntegrityError(f"{path}: a row per examination must be there, got no file; {_REMEDY}")
        _check_hash(path, record.sha256, path)
        return read_table(path, record.rows)

    def check_level(self) -> None:
        """Refuse what needs labels of slices, where only studies and the like have some.

        Raises:
            ConfigError: what they are of.
        """
        if self.manifest.level != "slice":
            raise ConfigError(
                f"{self.files.root}: slices must have labels of their own, got labels of a {self.manifest.level} each: "
                "no network of slices can be trained on these or measured by them; prepare with labels of slices"
            )

    def column(self, name: str) -> NDArray[np.object_]:
        return np.asarray(self.slices[name].to_numpy(zero_copy_only=False))

    def label(self, name: str) -> NDArray[np.float32]:
        """0 or 1 for each row, NaN where it is unknown, as it is everywhere without such a column."""
        if name not in self.slices.column_names:
            return np.full(len(self), np.nan, np.float32)
        return np.asarray(self.slices[name].to_numpy(), np.float32)

    @cached_property
    def neighbors(self) -> NDArray[np.int64]:
        """Rows beside each row in its series, `[n, 5]`, see `data.neighbors`."""
        return series_neighbors(self.slices)

    @cached_property
    def head_boxes(self) -> NDArray[np.float64]:
        """Where the head lies in the series of each row, `[n, 4]`, see `data.shown_rectangles`."""
        boxes = np.stack([numbers(self.slices, name) for name in HEAD_BOX], 1)
        return series_boxes(number_series(self.slices), boxes)

    @cached_property
    def sides_mm(self) -> NDArray[np.float64]:
        """Of the image of each row, `[n]`, NaN where it is not known."""
        return numbers(self.slices, "side_mm")

    def role(self, role: Role) -> SliceSet:
        """The slices of one role."""
        return SliceSet(self, np.flatnonzero(self.column("role") == role))

    def verify(self, *roles: Role) -> None:
        """Compare slices.parquet, and each block that holds a slice of `roles`, with the manifest.

        Takes 1 s per GB. Reads no label.

        Raises:
            IntegrityError: a file is not the one that was prepared.
        """
        self.check_table()
        held = self.column("role")
        self._verify(np.unique(self._places[0][np.isin(held, roles)]).tolist(), copied=True)
        for role, counts in self.manifest.roles.items():
            if (found := int((held == role).sum())) != counts.slices:
                raise IntegrityError(
                    f"{self.files.slices}: {counts.slices} {role} slices must be there, got {found}; prepare the "
                    "dataset again"
                )

    def _verify(self, blocks: Sequence[int], *, copied: bool) -> None:
        """Compare the rows of slices.parquet, and these blocks or their copies here, with the manifest."""
        _ = self._places
        for number in blocks:
            block = self.manifest.blocks[number]
            path = self.files.root / block.file
            copy = self._local(block) if copied else path
            with malformed(path, _BLOCK, _REMEDY):
                check_size(copy, block.rows * math.prod(self.image_shape))
            _check_hash(path, block.sha256, copy)

    def check_table(self) -> None:
        """Compare slices.parquet with the manifest, without reading it into memory.

        Raises:
            IntegrityError: it is missing, or not the one that was prepared.
        """
        if not self.files.slices.is_file():
            raise _no_table(self.files.slices)
        if self.manifest.slices_sha256:
            _check_hash(self.files.slices, self.manifest.slices_sha256, self.files.slices)

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block and row of each slice; every row lies in its block, so that addresses made of them are valid."""
        try:
            return places_of(self.slices, [block.rows for block in self.manifest.blocks])
        except ValueError as error:
            raise IntegrityError(f"{self.files.slices}: {error}; {_REMEDY}") from None

    @cached_property
    def _blocks(self) -> dict[int, NDArray[np.uint8]]:
        """The blocks mapped so far."""
        return {}

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The address of each block, 0 until it is mapped."""
        return np.zeros(len(self.manifest.blocks), np.int64)

    @cached_property
    def _images(self) -> MappedImages:
        return MappedImages()

    def gathered_shape(self, rows: NDArray[np.int64], channels: Sequence[int] | None = None) -> tuple[int, ...]:
        """Of what `gather` gives."""
        of_image, *sides = self.image_shape
        if channels is None:
            return (len(rows), of_image * math.prod(rows.shape[1:]), *sides)
        if rows.shape[1:] != (len(channels),) or not 0 < min(channels) <= max(channels) <= of_image:
            raise ValueError(f"channels must be of the images of a row, got {channels} for rows {rows.shape}")
        return (len(rows), sum(channels), *sides)

    def gather(
        self,
        rows: NDArray[np.int64],
        out: NDArray[np.uint8] | None = None,
        channels: Sequence[int] | None = None,
    ) -> NDArray[np.uint8]:
        """Images of rows of slices.parquet, uint8 `[len(rows), channels, rows, columns]`.

        One memmove per image: 3 times as fast as indexing block by block, and as fast as copying memory in a row. What
        is missing in memory is read from the disk side by side.

        Args:
            rows: int64 `[n]`, or `[n, k]` of k images beside each other.
            out: where to write them.
            channels: how many, the first ones, to take of each of the k images; all if not given.
        """
        shape = self.gathered_shape(rows, channels)
        addresses, sizes = self._mapped(rows, channels)
        out = np.empty(shape, np.uint8) if out is None else out
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out must be a contiguous uint8 array of shape {shape}, got {out.dtype} {out.shape}")
        self._images.copy(addresses, sizes, out.ctypes.data)
        return out

    def read_ahead(self, rows: NDArray[np.int64], channels: Sequence[int] | None = None) -> None:
        """Have images read that `gather` will soon be asked for with the same arguments, and return at once."""
        self._images.ask_for(*self._mapped(rows, channels))

    def _mapped(self, rows: NDArray[np.int64], channels: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """Where the images of rows lie in memory, in turn, and how many bytes of each are wanted."""
        blocks, places = (place[rows] for place in self._places)
        for block in np.unique(blocks[self._starts[blocks] == 0]).tolist():
            self._blocks[block] = self._map(block)
            self._starts[block] = self._blocks[block].ctypes.data
            map_at_random(int(self._starts[block]), self._blocks[block].nbytes)
        of_image, *sides = self.image_shape
        addresses = self._starts[blocks] + places * of_image * math.prod(sides)
        wanted = [count * math.prod(sides) for count in channels or [of_image]]
        return addresses.reshape(-1).tolist(), wanted * (addresses.size // len(wanted))

    def _local(self, block: BlockRecord) -> UPath:
        """The block on this machine, fetched if it lies elsewhere."""
        path = self.files.root / block.file
        if is_local(path):
            return path
        most_bytes = block.rows * math.prod(self.image_shape) + _BLOCK_OVERHEAD_BYTES
        return locate(local_copy(path, block.sha256, self.manifest.fingerprint, most_bytes))

    def _map(self, block: int) -> NDArray[np.uint8]:
        record = self.manifest.blocks[block]
        local = self._local(record)
        with malformed(self.files.root / record.file, _BLOCK, _REMEDY):
            return map_tensors(local, "image", np.uint8, (record.rows, *self.image_shape), _REMEDY)


def _no_table(path: UPath) -> IntegrityError:
    return IntegrityError(f"{path}: a row per accepted slice must be there, got no file; prepare the dataset again")


def _check_hash(path: UPath, digest: str, copy: UPath) -> None:
    """Read a file of a dataset, or its copy on this machine, and compare it with the manifest."""
    if sha256(copy) != digest:
        raise IntegrityError(f"{path}: SHA-256 must equal the manifest's; prepare the dataset again")


def map_block(path: UPath) -> NDArray[np.uint8]:
    """Map the images of a block, read-only and without copying: pages are read when touched.

    A block on object storage is read into memory.

    Raises:
        IntegrityError: it is none.
    """
    with malformed(path, _BLOCK, _REMEDY):
        return map_tensors(path, "image", np.uint8, remedy=_REMEDY)
