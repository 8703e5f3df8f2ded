from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.statistics.metrics import average_precision
from ich_ray.training import sequence_batches, sequence_loop
from ich_ray.training.parts import Progress, TrainingBudget
from ich_ray.training.sequence_loop import SequenceStart, train_sequence
from ich_ray.training.sequence_set import SequenceSet
from ich_ray.training.state import TrainingState
from tests.sequences import make_series, without_slice_labels

LAYERS = {"bigru": 1, "bilstm": 1, "transformer": 2, "dilated_conv": 2}
MODELS = [*LAYERS]
LEARNING = SequenceParameters(hidden=16, projection=16, batch_size=8, learning_rate=5e-3, dropout=0.1)
QUICK = SequenceParameters(hidden=16, projection=16, layers=2, batch_size=8, learning_rate=5e-3)
METRICS = {
    "average_precision", "roc_auc", "f2", "f2_threshold", "log_loss", "weighted_log_loss",
    "average_precision_subdural", "roc_auc_subdural", "average_precision_subtypes", "roc_auc_subtypes",
    "subtypes_measured", "study_average_precision", "study_roc_auc", "study_log_loss", "train_loss",
}  # fmt: skip


@pytest.fixture(scope="module")
def given() -> tuple[SequenceSet, SequenceSet]:
    return make_series(), make_series(series=30, seed=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(
    given: tuple[SequenceSet, SequenceSet | None],
    parameters: SequenceParameters = QUICK,
    images: int = 60,
    every: int = 20,
    **more: object,
) -> list[Progress]:
    return list(train_sequence(parameters, *given, budget=TrainingBudget(images, every), seed=3, **more))  # type: ignore[arg-type]


def as_bytes(state: TrainingState) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.tensors.items()}


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_what_slices_alone_do_not_show(model: str, given: tuple[SequenceSet, SequenceSet]) -> None:
    parameters = LEARNING.model_copy(update={"model": model, "layers": LAYERS[model]})
    train, validation = make_series(200), make_series(80, seed=1)
    (end,) = trained((train, validation), parameters, images=1200, every=1200)
    alone = average_precision(validation.targets[:, 1], np.asarray(validation.features)[:, 0])
    assert end.metrics["average_precision"] > alone + 0.1
    assert end.metrics["study_roc_auc"] > 0.75
    assert set(end.metrics) >= METRICS
    assert end.logits is not None
    assert end.logits.shape == (len(validation.targets), 2)
    assert (end.setup.device, end.setup.images, end.setup.mode) == ("cpu", "host", "float32")


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_reports_land_on_multiples_whatever_the_batch(batch_size: int, given: tuple[SequenceSet, SequenceSet]) -> None:
    parameters = QUICK.model_copy(update={"batch_size": batch_size})
    assert [progress.images_seen for progress in trained(given, parameters, images=70, every=30)] == [30, 60, 70]


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_repeats_the_undisturbed_one(
    model: str, given: tuple[SequenceSet, SequenceSet], tmp_path: Path
) -> None:
    parameters = QUICK.model_copy(update={"model": model, "deltas": True, "position": "mm"})
    whole, states = [], []
    for progress in train_sequence(parameters, *given, budget=TrainingBudget(70, 20), seed=3):
        whole.append(progress)
        states.append(progress.state())
    assert [progress.images_seen for progress in whole] == [20, 40, 60, 70]
    for number, state in enumerate(states[:-1]):
        state.save(tmp_path / "state.safetensors")
        again = TrainingState.load(tmp_path / "state.safetensors")
        torch.rand(3)  # what else is drawn meanwhile changes nothing
        rest = []
        for progress in train_sequence(parameters, *given, budget=TrainingBudget(70, 20), seed=3, resume=again):
            rest.append((progress.metrics, as_bytes(progress.state())))
            assert progress.elapsed_s > whole[number].elapsed_s
        assert [metrics for metrics, _ in rest] == [progress.metrics for progress in whole[number + 1 :]]
        assert rest[-1][1] == as_bytes(states[-1])
    assert next(iter(trained(given, parameters, images=70))).metrics == whole[0].metrics


def test_another_seed_gives_another_run(given: tuple[SequenceSet, SequenceSet]) -> None:
    budget = TrainingBudget(20, 20)
    first, second = (next(iter(train_sequence(QUICK, *given, budget=budget, seed=seed))) for seed in (0, 1))
    assert first.metrics != second.metrics


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: {"parameters": QUICK.model_copy(update={"hidden": 8})}, "'hidden': 16"),
        (lambda: {"images": 80}, "'budget': 60"),
        (lambda: {"given": (make_series(seed=9), None)}, "'data': '40 12 0'"),
    ],
)
def test_a_state_of_another_plan_is_refused(
    change: Callable[[], dict[str, object]], said: str, given: tuple[SequenceSet, SequenceSet]
) -> None:
    state = next(iter(train_sequence(QUICK, *given, budget=TrainingBudget(60, 20), seed=3))).state()
    with pytest.raises(ConfigError, match=f"resume: .*{said}"):
        trained(**{"given": given, "resume": state, **change()})  # type: ignore[arg-type]


def test_parts_of_a_batch_give_the_gradient_of_all(
    given: tuple[SequenceSet, SequenceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = QUICK.model_copy(update={"dropout": 0.0, "noise": 0.0, "slice_dropout": 0.0})
    (whole,) = trained(given, parameters, images=20)[-1:]
    monkeypatch.setattr(sequence_batches, "MOST_PLACES", 30)
    (parts,) = trained(given, parameters, images=20)[-1:]
    assert parts.logits is not None
    assert whole.logits is not None
    assert np.allclose(whole.logits, parts.logits, atol=1e-4)


def test_a_loss_that_is_not_finite_fails_the_trial(given: tuple[SequenceSet, SequenceSet]) -> None:
    broken = np.array(given[0].features)
    broken[:] = np.nan
    with pytest.raises(TrialFailure, match="diverged: the training loss is nan after 20 series"):
        trained((replace(given[0], features=broken), given[1]))


def test_a_logit_that_is_not_finite_fails_the_trial(given: tuple[SequenceSet, SequenceSet]) -> None:
    broken = np.array(given[1].features)
    broken[3] = np.nan
    with pytest.raises(TrialFailure, match="diverged: a validation logit is not finite after 20 series"):
        trained((given[0], replace(given[1], features=broken)))


def test_memory_that_runs_out_fails_the_trial(
    given: tuple[SequenceSet, SequenceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(sequence_loop, "clip_grad_norm_", refuse)
    with pytest.raises(TrialFailure, match="out_of_memory: CUDA out of memory"):
        trained(given)


def test_its_memory_is_free_when_the_failure_is_told(
    given: tuple[SequenceSet, SequenceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[weakref.ref[sequence_loop._SequenceRun]] = []

    def full(self: sequence_loop._SequenceRun, _: int) -> None:
        runs.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sequence_loop._SequenceRun, "_step", full)
    with pytest.raises(TrialFailure, match="out_of_memory") as caught:
        trained(given)
    assert [run() for run in runs] == [None]
    assert caught.value.__context__ is None, "with it its frames would hold the run"


def test_the_study_head_learns_of_examinations_alone() -> None:
    train, validation = (without_slice_labels(one) for one in (make_series(200), make_series(80, seed=1)))
    (end,) = trained((train, validation), LEARNING, images=800, every=800)
    assert end.metrics["study_roc_auc"] > 0.7
    assert math.isnan(end.metrics["average_precision"])
    with pytest.raises(ConfigError, match="slices 0 with and 0 without; prepare"):
        trained((train, validation), LEARNING.model_copy(update={"study_weight": 0.0}))


def test_labels_that_are_not_known_teach_nothing(given: tuple[SequenceSet, SequenceSet]) -> None:
    train = given[0]
    hidden = np.array(train.targets)
    hidden[np.asarray(train.order.series) % 2 == 0, 0] = np.nan
    first = trained((replace(train, targets=hidden), None), images=40)
    assert {tuple(progress.metrics) for progress in first} == {("train_loss",)}
    hidden = np.array(hidden)
    assert np.isfinite(first[-1].metrics["train_loss"])
    none = np.full_like(train.targets, np.nan)
    with pytest.raises(ConfigError, match="slices 0 with and 0 without and examinations 0 with and 40 without"):
        trained((replace(train, targets=none, study_targets=np.zeros_like(train.study_targets)), None))


def test_features_are_normalized_by_those_of_the_training_series(given: tuple[SequenceSet, SequenceSet]) -> None:
    state = next(iter(train_sequence(QUICK, *given, budget=TrainingBudget(20, 20), seed=3))).state()
    features = np.asarray(given[0].features, np.float64)
    network = build_sequence_network(QUICK, features.shape[1], 2)
    network.load_state_dict(state.part("weights"))
    assert network.mean.tolist() == pytest.approx(features.mean(0).tolist(), abs=1e-5)
    assert network.std.tolist() == pytest.approx(features.std(0).tolist(), rel=1e-5)


def test_every_epoch_shows_every_series_once(
    given: tuple[SequenceSet, SequenceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []
    take = sequence_batches.PlaceFeatures.take

    def spy(self: sequence_batches.PlaceFeatures, series: np.ndarray) -> sequence_batches.SeriesBatch:
        shown.append(series.tolist())
        return take(self, series)

    monkeypatch.setattr(sequence_batches.PlaceFeatures, "take", spy)
    trained((given[0], None), images=80, every=25)
    order = list(itertools.chain(*shown))
    assert sorted(order[:40]) != order[:40]
    assert len(order) == 80
    assert sorted(order) == sorted([*range(40), *range(40)])


@pytest.mark.parametrize("study_alone", [True, False])
def test_a_training_that_begins_at_weights_moves_what_it_may(
    given: tuple[SequenceSet, SequenceSet], study_alone: bool
) -> None:
    torch.manual_seed(5)
    network = build_sequence_network(QUICK, given[0].features.shape[1], 2)
    begun = {name: value.clone() for name, value in network.state_dict().items()}
    train = without_slice_labels(given[0]) if study_alone else given[0]
    last = trained((train, None), start=SequenceStart(begun, study_alone))[-1].state().part("weights")
    moved = {name for name, value in last.items() if not torch.equal(value, begun[name])}
    heads = {name for name in begun if name.startswith(("attention.", "study_head."))}
    assert moved == (heads if study_alone else {*begun} - {"mean", "std"})
