"""Where every file of a dataset and of a search lives: every name below a root is formed here.

Local paths and URIs (``s3://``, ``gs://``) are the same `UPath` type. Knows nothing of what the files mean.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from upath import UPath

from ich_ray.errors import ConfigError, IchRayError, IntegrityError, first_line
from ich_ray.storage.addresses import holds_credentials, without_credentials
from ich_ray.storage.retries import retried

if TYPE_CHECKING:
    import os

__all__ = [
    "DatasetFiles",
    "Location",
    "SearchFiles",
    "check_file",
    "check_folder",
    "check_regular",
    "exists",
    "is_local",
    "locate",
    "system_reason",
    "unreadable",
]

Location: TypeAlias = "str | os.PathLike[str] | UPath"

# What fsspec calls the file system of this machine: a URI of it is a path, to be locked and replaced like any other.
_LOCAL = ("file", "local")


def locate(where: Location) -> UPath:
    """The path or URI `where`; local paths are made absolute.

    They then mean the same in another process. Listings of object storage are not remembered: other processes write
    there, and `results` must see it.

    Raises:
        ConfigError: it holds a user, a password or a signature, which are not repeated; nothing here can read such a
            URI, nobody may look there, or the user after ~ is unknown.
    """
    if holds_credentials(str(where)):
        raise ConfigError(
            f"{without_credentials(str(where))}: an address is shown and stored and must hold no user, password, token "
            "or signature, got one; leave it out, credentials come from the environment or the provider's own files"
        )
    try:
        path = UPath(where)
        if path.protocol in _LOCAL:
            path = UPath(path.path)
        if not is_local(path):
            path = UPath(path, use_listings_cache=False)
            _ = path.fs, path / "x"
            return path
    except (ImportError, ValueError, TypeError, NotImplementedError, OSError) as error:  # of a file system of fsspec
        raise ConfigError(
            f"{where}: a file system for it must be installed, got {without_credentials(str(error))}; s3:// comes with "
            "this package"
        ) from None
    try:
        path = UPath(path.expanduser().absolute())
    except RuntimeError:
        raise ConfigError(f"{where}: the home folder that ~ stands for must be known; write the whole path") from None
    exists(path)
    return path


def exists(path: UPath) -> bool:
    """Whether there is anything at `path`.

    Raises:
        ConfigError: nobody may look there, no file can have that name, or a storage is not to be reached.
    """
    try:
        return retried(path, path.exists)
    except OSError as error:
        raise ConfigError(
            f"{path}: must be a place where this user may look, got {system_reason(error)}; choose another one"
        ) from None
    except Exception as error:
        if is_local(path):
            raise
        # Each storage has errors of its own, such as botocore's for credentials that nobody gave.
        raise ConfigError(
            f"{path}: its storage must answer, got {type(error).__name__}: {without_credentials(first_line(error))}; "
            "check the address, the network and the credentials that your other tools use"
        ) from None


def check_file(path: UPath, what: str) -> None:
    """Refuse, before any work, a place where no file can be written.

    Args:
        path: the file to be; one that is there is to be replaced.
        what: names it in the message, such as the option that gave it.

    Raises:
        ConfigError: a folder is there, a folder above it is a file, or this user may not write there.
    """
    if exists(path) and path.is_dir():
        raise ConfigError(f"{what} {path}: must be a file, got a folder; name a file in it")
    check_folder(path.parent, what)


def check_folder(folder: UPath, what: str) -> None:
    """Refuse, before any work, a place where no folder can be written; nothing is left behind.

    Args:
        folder: the folder to be; one that is there is to be written into.
        what: names it in the message, such as the option that gave it.

    Raises:
        ConfigError: a file is there or above it, or this user may not write there.
    """
    if not is_local(folder):
        return  # object storage knows no folders, and says who may write when it is written
    there = next(place for place in (folder, *folder.parents) if exists(place))
    if not there.is_dir():
        raise ConfigError(f"{what} {folder}: must be a folder, got a file at {there}; name another")
    try:
        # Asking for rights is not enough: root has all of them on /proc and on a disk that is mounted read-only.
        with tempfile.TemporaryFile(dir=str(there)):
            pass
    except OSError as error:
        raise ConfigError(
            f"{what} {folder}: must be a place where this user may write, got {system_reason(error)}; choose another"
        ) from None


def check_regular(path: UPath, remedy: str) -> None:
    """Refuse what is there and no file, before it is opened: a pipe would never end, nor would a device.

    Raises:
        IntegrityError: a folder, pipe, device or socket is there.
        ConfigError: nobody may look there.
    """
    if is_local(path) and exists(path) and not path.is_file():
        raise IntegrityError(f"{path}: must be a file, got something else; {remedy}")


def system_reason(error: OSError) -> str:
    """What the system says: `permission denied`."""
    said = without_credentials(error.strerror or type(error).__name__)
    return f"{said[:1].lower()}{said[1:]}"


def unreadable(path: UPath, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: must be readable, got {system_reason(error)}; let this user read it")


def not_read(path: UPath, error: Exception, hint: str) -> IchRayError:
    """Why a file of a search that is followed could not be read; each storage has errors of its own.

    One of ours has its hint already.
    """
    if isinstance(error, IchRayError):
        return error
    got = system_reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {first_line(error)}"
    return IchRayError(f"{path}: must be readable, got {got}; {hint}")


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
    def examinations(self) -> UPath:
        """Labels of series, studies or patients, where there are any."""
        return self.root / "examinations.parquet"

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
        if not exists(self.trials):
            return []
        try:
            found = [path for path in self.trials.iterdir() if "0" <= path.name[0] <= "9" and path.suffix == ".json"]
        except NotADirectoryError:
            raise IntegrityError(
                f"{self.trials}: must be a folder, got something else; restore it from a copy"
            ) from None
        except OSError as error:
            raise unreadable(self.trials, error) from None
        return sorted(found, key=lambda path: path.name)

    def check_no_links(self) -> None:
        """Refuse links among the folders of a search: they would choose where we write and remove.

        Whole searches may be linked to, and single files: those are replaced and not written through.

        Raises:
            IntegrityError: there is one.
            ConfigError: nobody may look there.
        """
        if not is_local(self.root):
            return
        try:
            within = [
                path
                for folder in (self.checkpoints, self.logits, self.weights, self.final)
                if folder.is_dir()
                for path in folder.iterdir()
            ]
        except OSError as error:
            raise unreadable(self.root, error) from None
        own = [self.trials, self.checkpoints, self.logits, self.features, self.weights, self.final]
        own += [self.requests, self.logs]
        for path in (*own, *within):
            if path.is_symlink() and not path.is_file():
                raise IntegrityError(
                    f"{path}: folders of a search must lie in it, got a link; put there what it leads to, or link the "
                    "whole search"
                )

    def checkpoint(self, number: int) -> UPath:
        return self.checkpoints / f"{number:05d}"

    @property
    def logits(self) -> UPath:
        """What networks said of the patients who judge them: of all folds, or of the best trials."""
        return self.root / "logits"

    @property
    def chances(self) -> UPath:
        """How probable it is of each of the best trials that it is the best."""
        return self.root / "chances.json"

    def logits_of(self, number: int) -> UPath:
        return self.logits / f"{number:05d}"

    @property
    def logs(self) -> UPath:
        """The last lines that the processes of trials wrote."""
        return self.root / "logs"

    def log(self, number: int) -> UPath:
        """Of a trial's attempt that runs, or was the last one."""
        return self.logs / f"{number:05d}.txt"

    def lost_log(self, number: int) -> UPath:
        """Of the last attempt at a trial that was lost."""
        return self.logs / f"{number:05d}-lost.txt"

    @property
    def requests(self) -> UPath:
        """What is asked of the search while it runs, a file each until it is answered."""
        return self.root / "requests"

    def request(self, name: str) -> UPath:
        return self.requests / f"{name}.json"

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
    def sequence(self) -> SearchFiles:
        """The search for a sequence model over the bundle's features: a search folder of its own."""
        return SearchFiles(self.final / "sequence")

    @property
    def features(self) -> UPath:
        """What a network makes of slices, where sequence models are searched."""
        return self.root / "features"

    def weights_of(self, seed: int) -> UPath:
        """States of the best reports of the trial with a seed, where they are kept."""
        return self.weights / str(seed)

    @property
    def weights(self) -> UPath:
        return self.root / "weights"

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
    def studies(self) -> UPath:
        """One row per test study: what `evaluate` saw of it, by pseudonyms."""
        return self.final / "studies.parquet"

    @property
    def report(self) -> UPath:
        return self.final / "report.html"

    @property
    def side_by_side(self) -> UPath:
        """The page that compares other searches with this one."""
        return self.final / "side_by_side.html"
