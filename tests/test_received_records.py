"""No field of any record is more than its kind says: hostile values for each, made from the records themselves."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from tests import hostile

KINDS = hostile.kinds()
# Records with their fields that take what most must not:
# `text`, a path for a text, since it is shown and never used as one, except for the weights of a draw, a file of this
# machine that a training reads; `address`, without what opens it; `file`, below the folder of the record; `lines`, a
# text of several; `seed`, a number without a bound, which nothing allocates; `signed`, a whole number below zero.
STATED = {
    "cluster.device_facts.DeviceFacts text": "name number problem",
    "cluster.device_facts.DeviceFacts lines": "problem",
    "cluster.device_facts.Devices text": "cuda hints seen",
    "cluster.device_facts.Devices lines": "hints seen",
    "cluster.machine_facts.Facts text": (
        "auth_mode cache cache_folder cloud disk home machine metadata ray_folder silent storage token_file unanswered "
        "unread versions"
    ),
    "cluster.machine_facts.Facts lines": (
        "auth_mode cache cache_folder disk home machine metadata ray_folder silent storage token_file unanswered unread"
    ),
    "data.dataset_audit.Check text": "breaches found invariant rule",
    "data.dataset_audit.Check lines": "breaches found",
    "data.dataset.BlockRecord file": "file",
    "data.dataset.DatasetManifest text": "labels notes reasons versions",
    "data.dataset.DatasetManifest seed": "seed",
    "data.dataset.ExaminationRecord text": "contradictions",
    "data.dataset.ReaderAgreement text": "label",
    "assess.calibration.Calibration text": "notes operating_points",
    "bundle.adaptation_note.AdaptationNote text": "figures",
    "bundle.card.CalibrationNote text": "notes",
    "bundle.card.Card text": "checklist intended_use label limitations name operating_points site_tests test versions",
    "bundle.card.Card signed": "site_tests test",
    "bundle.card.DatasetNote text": "roles",
    "bundle.operating_point.OperatingPoint text": "rule",
    "bundle.study_calibration.StudyScaling text": "notes operating_points",
    "bundle.card.RetrainingNote text": "budget rule",
    "bundle.card.RetrainingNote seed": "seed seeds",
    "bundle.card.SubtypeCalibration text": "notes operating_points",
    "bundle.sequence_note.SequenceNote signed": "figures",
    "bundle.sequence_note.SequenceNote text": "figures objective",
    "bundle.training_data.Names text": "counts",
    "bundle.card.SearchNote text": "confirmed constraints name objective",
    "assess.evaluation.Evaluation text": (
        "floors label_metrics labels metrics notes operating_points representations sequence_change subtypes"
    ),
    "assess.study_figures.StudyFigures text": "floors labels metrics notes operating_points subtypes",
    "assess.interval_estimates.Figures text": "floors metrics operating_points",
    "assess.interval_estimates.GroupFigures text": "floors metrics operating_points",
    "refit.race_record.Dropped text": "reason",
    "refit.retrain_record.Retraining text": "budget device parameters",
    "refit.retrain_record.Retraining signed": "parameters",
    "refit.retrain_record.Retraining seed": "seed",
    "bundle.members.Member seed": "seed",
    "refit.retrain_record.MemberRun text": "parameters",
    "refit.retrain_record.MemberRun signed": "parameters",
    "refit.retrain_record.SeedRun text": "device reason",
    "refit.retrain_record.SeedRun lines": "reason",
    "refit.retrain_record.SeedRun seed": "seed",
    "model.hyperparameters.Hyperparameters text": "unfreeze_from weights",
    "published.full_size.PlannedStage text": "device rated stage",
    "published.system_results.Decided text": "tuned_on",
    "published.system_results.System text": "floors name parameters split",
    "published.system_results.System signed": "parameters",
    "published.probe.ProbeCandidate text": "failure parameters",
    "published.probe.ProbeCandidate lines": "failure",
    "published.probe.ProbeCandidate signed": "parameters",
    "published.probe.Probe seed": "seed",
    "published.probe.Probe text": "space",
    "published.probe.Probe signed": "space",
    "published.reproduction.Reproduction text": "candidates folds trials_a",
    "published.reproduction.Reproduction signed": "candidates folds trials_a",
    "published.reproduction.Reproduction address": "weights",
    "trial_records.CheckpointReference file": "file",
    "trial_records.LogitsReference file": "file",
    "search_records.ControlRequest text": "add",
    "search_records.ControlRequest signed": "add",
    "search_records.LaunchNote text": "kind reason",
    "trial_records.LostAttempt text": "cause detail host",
    "trial_records.LostAttempt lines": "detail",
    "search_records.QuarantineNote text": "cause host",
    "trial_records.FaultPlace text": "cause host",
    "trial_records.Objective text": "metric",
    "trial_records.Report text": "metrics",
    "search_records.RequestNote text": "answer",
    "search_records.SearchRecord address": "dataset",
    "search_records.SearchRecord text": "amendments ms_per_slice name seconds_per_image space versions",
    "search_records.SearchRecord seed": "seed",
    "search_records.SearchRecord signed": "amendments space",
    "trial_records.ExecutionInfo text": "device mode rates",
    "trial_records.TrialResult text": "detail parameters reason where",
    "trial_records.TrialResult lines": "detail",
    "trial_records.TrialResult signed": "parameters",
    "trial_records.TrialResult seed": "seed",
    "trial_records.WeightsNote file": "file",
    "search_records._Amendment address": "dataset warm_start",
    "search.audit.search_audit.Audit text": "where",
    "search.audit.search_audit.Audit lines": "where",
}


@pytest.mark.parametrize("kind", KINDS, ids=hostile.named)
def test_no_field_is_more_than_its_kind_says(kind: type[BaseModel]) -> None:
    taken: dict[str, set[str]] = {}
    for field, put, record in hostile.accepted(kind):
        held = [*hostile.leaves(record.model_dump(mode="json"))]
        assert all(map(hostile.is_finite, held)), (field, put)
        assert all(hostile.is_harmless(text) for text in held if isinstance(text, str)), (field, put)
        taken.setdefault(field, set()).update({put}, hostile.properties(held))
    found: dict[str, list[str]] = {}
    for field, puts in sorted(taken.items()):
        for what in hostile.judged(puts):
            found.setdefault(f"{hostile.named(kind)} {what}", []).append(field)
    stated = {name: fields for name, fields in STATED.items() if name.split()[0] == hostile.named(kind)}
    assert {name: " ".join(fields) for name, fields in found.items()} == stated


def test_what_is_stated_is_of_records_that_exist() -> None:
    assert {name.split()[0] for name in STATED} <= {hostile.named(kind) for kind in KINDS}


def test_every_record_has_an_example_that_its_file_could_hold() -> None:
    """Or nothing would have been tried."""
    assert len(KINDS) > 40
    for kind in KINDS:
        assert set(kind.model_validate(hostile.example(kind)).model_fields_set) == {*kind.model_fields}


def test_a_field_that_takes_anything_is_found() -> None:
    class Careless(BaseModel):
        folder: str
        size: int

    found = {(field, put) for field, put, _ in hostile.accepted(Careless)}
    assert {("folder", '"../x"'), ("size", str(2**63)), ("size", "-1")} <= found
    assert not {put for _, put in found} & {"NaN", "1e999"}
