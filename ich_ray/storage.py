"""Where every file of a dataset and of a search lives, and how it is written.

The one door to the disk: local paths and URIs (``s3://``, ``gs://``) are the same `UPath` type, every write is
whole or absent, and every name below a root is formed here. Knows nothing of what the files mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from upath import UPath

from ich_ray.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

__all__ = [
    "DatasetFiles",
    "Line",
    "Location",
    "Record",
    "RelativeFile",
    "SearchFiles",
    "exclusive",
    "first_problem",
    "is_held",
    "is_local",
    "is_there",
    "locate",
    "read_json",
    "read_record",
    "read_table",
    "remove",
    "sha256",
    "system_reason",
    "write_bytes",
    "write_json",
    "write_table",
    "writing",
]

Location: TypeAlias = "str | os.PathLike[str] | UPath"

_HASH_CHUNK_BYTES = 1 << 20
# What fsspec calls the file system of this machine: a URI of it is a path, to be locked and replaced like any other.
_LOCAL = ("file", "local")
# The largest we write is the manifest of a dataset, 200 bytes a block; a file beyond this was not written by us.
_LARGEST_JSON_BYTES = 64 << 20


class Record(BaseModel):
    """What is kept in a JSON file: it never changes, and a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Kind = TypeVar("Kind", bound=BaseModel)


def _below(file: str) -> str:
    if not file or "\\" in file or "://" in file or any(part in {"", ".", ".."} for part in file.split("/")):
        raise ValueError(f"a file below this folder, not {file[:80]!r},")
    return file


# A name in a record that somebody else may have written: it cannot lead out of the folder that holds the record.
RelativeFile = Annotated[str, AfterValidator(_below)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"printable characters only, not {text[:80]!r},")
    return text


# A text that is shown to people as it is: it cannot steer their terminal.
Line = Annotated[str, AfterValidator(_printable)]


def locate(where: Location) -> UPath:
    """The path or URI `where`; local paths are made absolute, so that they mean the same on another process.

    Listings of object storage are not remembered: other processes write there, and `results` must see it.

    Raises:
        ConfigError: nothing here can read such a URI, or nobody may look there.
    """
    try:
        path = UPath(where)
        if path.protocol in _LOCAL:
            path = UPath(path.path)
        if not is_local(path):
            path = UPath(path, use_listings_cache=False)
            _ = path.fs
            return path
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{where}: a file system for it must be installed, got {error}; s3:// comes with this package"
        ) from None
    path = UPath(path.expanduser().absolute())
    is_there(path)
    return path


def is_there(path: UPath) -> bool:
    """Whether there is anything at `path`.

    Raises:
        ConfigError: nobody may look there, or no file can have that name.
    """
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(
            f"{path}: must be a place where this user may look, got {system_reason(error)}; choose another one"
        ) from None


def system_reason(error: OSError) -> str:
    """What the system says: `permission denied`."""
    said = error.strerror or type(error).__name__
    return f"{said[:1].lower()}{said[1:]}"


def is_local(path: UPath) -> bool:
    """Whether `path` lies on a file system of this machine (a shared folder counts)."""
    return isinstance(path, Path)


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a prepared dataset. `manifest` is written last: without it there is no dataset."""

    root: UPath

    @property
    def manifest(self) -> UPath:
        return self.root / "dataset.json"

    @property
    def plan(self) -> UPath:
        """What the dataset is prepared from, written first: it decides whether a rerun may go on with it."""
        return self.root / "prepare.json"

    @property
    def lock(self) -> UPath:
        return self.root / ".lock"

    @property
    def slices(self) -> UPath:
        return self.root / "slices.parquet"

    @property
    def rejected(self) -> UPath:
        return self.root / "rejected.parquet"

    @property
    def blocks(self) -> UPath:
        return self.root / "blocks"

    def sheet(self, role: str) -> UPath:
        """A picture of a few slices of a role, for people."""
        return self.root / "sheets" / f"{role}.png"


@dataclass(frozen=True)
class SearchFiles:
    """The files of a search.

    Raises:
        ConfigError: `root` is a file.
    """

    root: UPath

    def __post_init__(self) -> None:
        if is_local(self.root) and self.root.is_file():
            raise ConfigError(f"{self.root}: a search must be a folder, got a file; give another path")

    @property
    def search(self) -> UPath:
        return self.root / "search.json"

    @property
    def trials(self) -> UPath:
        return self.root / "trials"

    def trial(self, number: int) -> UPath:
        return self.trials / f"{number:05d}.json"

    @property
    def checkpoints(self) -> UPath:
        return self.root / "checkpoints"

    def records(self) -> list[UPath]:
        """All files in `trials` that look like a trial's, whatever is in them."""
        if not is_there(self.trials):
            return []
        try:
            found = [path for path in self.trials.iterdir() if "0" <= path.name[0] <= "9" and path.suffix == ".json"]
        except OSError as error:
            raise _unreadable(self.trials, error) from None
        return sorted(found, key=lambda path: path.name)

    def checkpoint(self, number: int) -> UPath:
        return self.checkpoints / f"{number:05d}"

    @property
    def lock(self) -> UPath:
        return self.root / ".lock"

    @property
    def final(self) -> UPath:
        return self.root / "final"

    @property
    def bundle(self) -> UPath:
        return self.final / "bundle"

    @property
    def retraining(self) -> UPath:
        return self.final / "retraining.json"

    @property
    def confirmation(self) -> UPath:
        return self.final / "confirm.json"

    def confirming(self, kind: str) -> SearchFiles:
        """The trainings behind a confirmation on `folds` or `seeds`: a search folder of their own."""
        return SearchFiles(self.final / f"confirm-{kind}")

    @property
    def calibration(self) -> UPath:
        return self.final / "calibration.json"

    @property
    def evaluation(self) -> UPath:
        return self.final / "evaluation.json"

    @property
    def predictions(self) -> UPath:
        """One row per test slice: what `evaluate` saw, for plots and for checking `predict` against it."""
        return self.final / "predictions.parquet"

    @property
    def report(self) -> UPath:
        return self.final / "report.html"


def write_bytes(path: UPath, data: bytes) -> None:
    """Write a file that is either whole or as it was before.

    Locally: a temporary name beside it, fsync, rename, fsync of the folder (a rename alone survives a killed
    process but not a power loss). Object stores put whole objects, so there one write is enough.
    """
    with writing(path) as file:
        file.write(data)


@contextmanager
def writing(path: UPath) -> Iterator[IO[bytes]]:
    """A file to write piece by piece; it stands at `path`, whole, when the block ends without an error, and not before.

    For an object store the pieces wait in a temporary file of this machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            path.fs.put_file(file.name, path.path)
        return
    temporary = Path(str(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(str(path))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(str(path.parent), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: UPath, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: UPath) -> Any:
    """Read a JSON file, which may come from anyone.

    Raises:
        IntegrityError: the file is not JSON, or far larger than any of ours.
    """
    remedy = "restore the file from a copy"
    if is_local(path) and path.exists() and not path.is_file():  # a pipe would never end, nor would /dev/zero
        raise IntegrityError(f"{path}: must be a file, got something else; {remedy}")
    with path.open("rb") as file:
        data = file.read(_LARGEST_JSON_BYTES + 1)
    if len(data) > _LARGEST_JSON_BYTES:
        raise IntegrityError(f"{path}: must be JSON of at most {_LARGEST_JSON_BYTES >> 20} MiB, got more; {remedy}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: must be JSON, got {error}; {remedy}") from None


def read_record(path: UPath, kind: type[Kind], remedy: str) -> Kind:
    """Read a JSON file as a record of one kind.

    Args:
        path: the file.
        kind: what it must be.
        remedy: the end of the error's message: what its reader can do.

    Raises:
        FileNotFoundError: it is not there.
        ConfigError: nobody may read it.
        IntegrityError: the file is not JSON, or not of this kind; the first wrong place is named.
    """
    try:
        return kind.model_validate(read_json(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValidationError as error:
        raise IntegrityError(f"{path}: must match its format, got {first_problem(error)}; {remedy}") from None


def _unreadable(path: UPath, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: must be readable, got {system_reason(error)}; let this user read it")


def first_problem(error: ValidationError) -> str:
    """The first wrong place of a record in a line: `Field required at number`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{first['msg']} at {where}" if where else str(first["msg"])


def write_table(path: UPath, table: pa.Table) -> None:
    """Write a Parquet file atomically."""
    import pyarrow as pa  # who only reads JSON need not wait for it
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_table(path: UPath) -> pa.Table:
    """Read a Parquet file."""
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return pq.read_table(file)


def remove(folder: UPath) -> None:
    """Remove a folder and all that is in it; one that is not there is gone already."""
    if is_local(folder):
        shutil.rmtree(str(folder), ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)


def sha256(data: bytes | UPath) -> str:
    """The SHA-256 of bytes or of a file, in hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    with data.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def exclusive(lock: UPath, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold `lock` while the block runs, so that two processes never write one folder.

    Only local and shared folders can be locked; on object storage the block runs unguarded.

    Args:
        lock: a file of its own.
        what: is written, for the message.
        wait: for as long as another process holds it.

    Raises:
        ConfigError: another process holds it, and nobody waits; or it cannot be written.
    """
    if not is_local(lock):
        yield
        return
    guard = FileLock(str(lock))
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire(timeout=-1 if wait else 1)
    except Timeout:
        raise ConfigError(
            f"{lock.parent}: one process at a time may write {what}, another one is at work; wait for it or stop it"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{lock.parent}: must be a folder where {what} can be written, got {system_reason(error)}; choose another"
        ) from None
    try:
        yield
    finally:
        guard.release()


def is_held(lock: UPath) -> bool:
    """Whether a process is inside `exclusive(lock)` now; without writing, and never so on object storage."""
    if not is_local(lock) or not lock.exists():
        return False
    with Path(str(lock)).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
