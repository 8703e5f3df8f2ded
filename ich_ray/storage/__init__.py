"""The one door to the disk: where files lie, how they are read and written, who may write. Knows no file's meaning."""

from ich_ray.storage.files import (
    read_json,
    read_table,
    remove,
    sha256,
    write_bytes,
    write_json,
    write_table,
    writing,
)
from ich_ray.storage.locks import exclusive, is_held
from ich_ray.storage.places import (
    DatasetFiles,
    Location,
    SearchFiles,
    check_file,
    check_folder,
    check_regular,
    is_local,
    is_there,
    locate,
    system_reason,
    unreadable,
)
from ich_ray.storage.records import Line, Record, RelativeFile, first_problem, read_record

__all__ = [
    "DatasetFiles",
    "Line",
    "Location",
    "Record",
    "RelativeFile",
    "SearchFiles",
    "check_file",
    "check_folder",
    "check_regular",
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
    "unreadable",
    "write_bytes",
    "write_json",
    "write_table",
    "writing",
]
