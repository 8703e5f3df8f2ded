"""The files of a dataset, a search and a bundle: their fields as tables, out of the records that read them."""

from __future__ import annotations

import re
from typing import NamedTuple

from documentation.fields import Fields, anchor, summary
from ich_ray.assess.calibration import Calibration
from ich_ray.assess.evaluation import Evaluation
from ich_ray.bundle.card import Card
from ich_ray.bundle.prediction import LabelledPrediction
from ich_ray.bundle.study_prediction import LabelledStudyPrediction
from ich_ray.bundle.training_patients import Known
from ich_ray.data.dataset import DatasetManifest
from ich_ray.data.feature_store import FeaturesRecord
from ich_ray.data.sequence_features import SequenceFeaturesRecord
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.refit.confirmation import Confirmation
from ich_ray.refit.retrain_record import Retraining
from ich_ray.search_records import Chances, ControlRequest, SearchRecord, _Amendment
from ich_ray.trial_records import TrialResult

__all__ = ["FILES", "OF_NO_FILE", "files", "shown"]


class FileFormat(NamedTuple):
    """A file, the record it holds, and what else a reader must know."""

    name: str
    kind: type
    note: str = ""


FILES = (
    FileFormat("DATASET/dataset.json", DatasetManifest, "Written last: a folder without it is no dataset."),
    FileFormat("DATASET/features/KEY/features.json", FeaturesRecord, "What frozen layers make of each slice, stored."),
    FileFormat("SEARCH/search.json", SearchRecord, "One driver writes it; anybody may read it at any time."),
    FileFormat("An entry of `amendments`", _Amendment, "An entry holds the keys that it changes, and no other."),
    FileFormat("SEARCH/trials/00042.json", TrialResult, "Rewritten whole at every report."),
    FileFormat("SEARCH/requests/ID.json", ControlRequest, "What `control` asks, until the driver has answered."),
    FileFormat("SEARCH/chances.json", Chances),
    FileFormat("SEARCH/final/confirm.json", Confirmation),
    FileFormat("SEARCH/final/retraining.json", Retraining),
    FileFormat("SEARCH/final/sequence/features/KEY/features.json", SequenceFeaturesRecord),
    FileFormat("SEARCH/final/calibration.json", Calibration),
    FileFormat("SEARCH/final/evaluation.json", Evaluation),
    FileFormat("BUNDLE/card.json", Card),
    FileFormat("BUNDLE/patients.json", Known, "Marks of the patients whom a site must not be measured on again."),
    FileFormat("A row of `predict`", LabelledPrediction, "A column each, in CSV, JSON and Parquet alike."),
    FileFormat("A row of `predict --by study`", LabelledStudyPrediction),
)
# They have sections of another page.
_ELSEWHERE = {
    Hyperparameters: "search-space.md#hyperparameters",
    SequenceParameters: "search-space.md#parameters-of-a-sequence-model",
}
# Records that are kept in no file of these, by the module that has them.
OF_NO_FILE = {
    "ich_ray.cluster.device_facts": "an answer of a machine to `doctor`",
    "ich_ray.cluster.machine_facts": "an answer of a machine to `doctor`",
    "ich_ray.cluster.storage_speed": "an answer of a machine to `doctor`",
    "ich_ray.data.dataset_audit": "what `audit --json` prints",
    "ich_ray.search.audit.search_audit": "what `audit --json` prints",
    "ich_ray.published.full_size": "of `reproduce` alone",
    "ich_ray.published.probe": "of `probe` alone",
    "ich_ray.published.reproduction": "of `reproduce` alone",
    "ich_ray.published.system_results": "of `reproduce` alone",
}


def files() -> str:
    """A section a file; records within it follow the first file that has them."""
    told: set[type] = {*_ELSEWHERE}
    return "\n".join(_section(one, told) for one in FILES)


def shown() -> list[type]:
    """Every record and data class that stands on the page."""
    told: set[type] = {*_ELSEWHERE}
    for one in FILES:
        _section(one, told)
    return sorted(told, key=lambda kind: kind.__qualname__)


def _section(one: FileFormat, told: set[type]) -> str:
    name = one.name if "`" in one.name else f"`{one.name}`"
    said = " ".join(filter(None, (_sentence(summary(one.kind)), one.note, _version(one.kind))))
    parts = [f"## {name}\n\n{said}\n\n{_table(one.kind)}"]
    told.add(one.kind)
    waiting = _within(one.kind)
    while waiting:
        kind = waiting.pop(0)
        if kind in told:
            continue
        told.add(kind)
        parts.append(f"### {kind.__name__}\n\n{summary(kind)}\n\n{_table(kind)}")
        waiting = [*_within(kind), *waiting]
    return "\n".join(parts)


def _table(kind: type) -> str:
    return Fields(kind, _link).table()


def _link(name: str) -> str:
    other = next((address for kind, address in _ELSEWHERE.items() if kind.__name__ == name), None)
    return f"[{name}]({other})" if other else anchor(name)


def _within(kind: type) -> list[type]:
    fields = Fields(kind)
    return [record for name in fields.names for record in fields.records_of(name)]


def _sentence(text: str) -> str:
    """Without the name of the file, which is the heading."""
    said = re.sub(r"^[\w.]+\.json[:.] ?", "", text)
    return f"{said[:1].upper()}{said[1:]}"


def _version(kind: type) -> str:
    fields = Fields(kind)
    if "format" in fields.names:
        return f"Version: `format` {fields.values('format')}."
    return "No version number: it is read by the fields that it has."
