"""Tables from pseudonyms back to files, kept beside the key and not in the dataset.

One row per listed file and per label without a file. The folder is `$ICH_RAY_IDENTITIES`, else `identities` beside the
key of the pseudonyms; the manifest holds the name of the table, which is a hash of what the dataset was made of. Only
its owner may read it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ich_ray.data.prepare.pseudonyms import key_file
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.storage import check_folder, locate, read_table, system_reason, unreadable, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset

__all__ = ["FileIdentity", "check_identities", "identities_file", "read_identities", "write_identities"]


@dataclass(frozen=True)
class FileIdentity:
    """What became of a file, and which file it is.

    Attributes:
        file: its pseudonym, as in slices.parquet or rejected.parquet; of a label without a file, that of its id.
        path: below the folder of the images, `path#frame` for a frame; empty for a label without a file.
        slice_id: pseudonym of `uid`.
        uid: SOPInstanceUID, that of a frame (see `ct.slice_file`), or the label's id in its table; empty where the file
            did not tell.
        reason: why it was not accepted; empty if it was.
        detail: more of the reason.
    """

    file: str
    path: str
    slice_id: str
    uid: str
    reason: str
    detail: str


def identities_file(name: str) -> Path:
    """Where the table of that name lies."""
    return _folder() / f"{name}.parquet"


def check_identities() -> None:
    """Refuse, before any work, a folder where no table can be written.

    Raises:
        ConfigError: this user cannot write there.
    """
    check_folder(locate(_folder()), "ICH_RAY_IDENTITIES")


def write_identities(name: str, table: pa.Table) -> None:
    """Write the table, for its owner only.

    Args:
        name: from the manifest.
        table: with the columns of `FileIdentity`.

    Raises:
        IchRayError: the disk is full, or the folder not to be written.
    """
    path = identities_file(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_table(locate(path), table, private=True)
    except OSError as error:
        raise IchRayError(
            f"{path}: the names behind the pseudonyms must be written, got {system_reason(error)}; free space or set "
            "ICH_RAY_IDENTITIES to another folder, then run again: finished blocks are kept"
        ) from None


def read_identities(dataset: PreparedDataset, pseudonyms: Sequence[str] = ()) -> list[FileIdentity]:
    """Who is behind pseudonyms of files or slices; without any, every file.

    Raises:
        ConfigError: the dataset has no pseudonyms of files, its table is not here, or a pseudonym is not in it.
        IntegrityError: the table is damaged.
    """
    root, name = dataset.files.root, dataset.manifest.identities
    if not name:
        raise ConfigError(
            f"{root}: files and slice ids must have pseudonyms, got an older dataset with both in the clear; read its "
            "slices.parquet and rejected.parquet"
        )
    path = locate(identities_file(name))
    try:
        rows = read_table(path).to_pylist()
        found = [FileIdentity(**row) for row in rows]
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: the names behind the pseudonyms of {root} must be there, got none; ask who prepared it, or set "
            "ICH_RAY_IDENTITIES to the folder that has them"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except TypeError:
        raise IntegrityError(f"{path}: must have the columns of identities, got others; restore a copy") from None
    return _chosen(found, pseudonyms, path) if pseudonyms else found


def _chosen(found: list[FileIdentity], pseudonyms: Sequence[str], path: UPath) -> list[FileIdentity]:
    wanted = {*pseudonyms}
    unknown = sorted(wanted - {name for row in found for name in (row.file, row.slice_id)})
    if unknown:
        raise ConfigError(
            f"{path}: must hold the pseudonym, got no {unknown[0]!r}; give a slice_id or a file of the dataset"
        )
    return [row for row in found if row.file in wanted or row.slice_id in wanted]


def _folder() -> Path:
    given = os.environ.get("ICH_RAY_IDENTITIES")
    return Path(given).expanduser() if given else key_file().parent / "identities"
