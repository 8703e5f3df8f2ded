"""Is a search, or a dataset, what it says it is? The invariants I1 to I8, checked on the files alone.

Works while the search runs, after it and offline; starts nothing, writes nothing, repairs nothing, and needs neither
Ray nor PyTorch. The files of a search are read in ledger_reader.py; what each invariant asks of them is in
invariants.py, of a dataset in data/dataset_audit.py.
"""

from __future__ import annotations

from typing import Literal

from ich_ray.data.dataset_audit import I8, Check, audit_dataset
from ich_ray.errors import ConfigError
from ich_ray.search.audit.invariants import check_search
from ich_ray.search.audit.ledger_reader import LedgerFiles
from ich_ray.storage import DatasetFiles, Location, Record, SearchFiles, Text, exists, is_foreign, locate

__all__ = ["Audit", "Check", "audit"]


class Audit(Record):
    """What was found.

    Attributes:
        state: of the search: at work now, ended, or interrupted (`--resume` goes on with it); `prepared` of a dataset.
    """

    where: Text
    state: Literal["at work", "ended", "interrupted", "prepared"]
    checks: tuple[Check, ...]

    @property
    def breached(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.state == "breach")


def audit(where: Location, dataset: Location | None = None) -> Audit:
    """Check a search with its dataset, or a dataset alone.

    Args:
        where: the search or the dataset.
        dataset: where the dataset of the search lies; if not given where search.json says. At an address that only it
            names the dataset is not checked.

    Raises:
        ConfigError: there is neither, or nobody may read it; or `dataset` is given beside a dataset.
        IntegrityError: search.json is damaged, so that nothing can be said about the search.
    """
    root = locate(where)
    if exists(SearchFiles(root).search):
        found = LedgerFiles.read(SearchFiles(root))
        return Audit(where=str(root), state=found.state, checks=(*check_search(found), _dataset(found, dataset)))
    if dataset is not None:
        raise ConfigError(f"{root}: --dataset says where that of a search lies, got no search; leave it out")
    if exists(DatasetFiles(root).manifest):
        return Audit(where=str(root), state="prepared", checks=(audit_dataset(root),))
    raise ConfigError(
        f"{root}: an audit needs search.json or dataset.json, got neither; give a folder that `ich-ray search` or "
        "`ich-ray prepare` wrote"
    )


def _dataset(found: LedgerFiles, where: Location | None) -> Check:
    record = found.record
    if where is None and is_foreign(record.dataset_folder, str(found.files.root)):
        told = f"not looked at {record.dataset_folder}, which only search.json names; add --dataset to check it"
        return Check(invariant="I8", rule=I8, state="unchecked", found=told)
    return audit_dataset(record.dataset_folder if where is None else where, record.fingerprint)
