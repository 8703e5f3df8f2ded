from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file
from torch import nn

from ich_ray import progress
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut
from ich_ray.errors import ConfigError
from ich_ray.model import pretrained_weights
from ich_ray.model.architectures import ARCHITECTURES, Architecture
from ich_ray.model.fields import NetworkFields
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.search import preflight
from ich_ray.search.cluster_resources import Machine, autoscaled
from ich_ray.search.plan.expected import plan_trials
from ich_ray.search.preflight import (
    Slots,
    check_objective,
    check_roles,
    check_trials,
    check_workers,
    plan_slots,
    room,
)
from ich_ray.search.request import TrialResources
from ich_ray.search.space.space import sampled
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.stopping import STOPPING_RULES, StoppingRule
from ich_ray.storage import locate, write_bytes
from ich_ray.trial_records import Objective
from ich_ray.vocabulary import SUBTYPES
from tests.prepared import make_dataset

LAPTOP = [Machine("machine", 2, 0, 1)]
CLUSTER = [Machine("machine", 4, 0, 1), Machine("gpu", 16, 4, 3)]


@pytest.mark.parametrize(
    ("found", "gpus", "cpus", "concurrent", "slots"),
    [
        (LAPTOP, None, 1, None, Slots(1, 0, 2)),
        (LAPTOP, None, 2, None, Slots(2, 0, 1)),
        (LAPTOP, 0, 0.5, None, Slots(0.5, 0, 4)),
        (CLUSTER, None, 1, None, Slots(1, 1, 12)),
        (CLUSTER, "auto", 1, None, Slots(1, 1, 12)),  # of which shares are planned once memories are known
        (CLUSTER, 0.25, 1, None, Slots(1, 0.25, 48)),
        (CLUSTER, 0.4, 1, None, Slots(1, 0.4, 24)),  # two of 0.4 share one GPU, not five two of them
        (CLUSTER, 2, 2, None, Slots(2, 2, 6, 2)),
        (CLUSTER, 2, 2, 4, Slots(2, 2, 4, 2)),
        (CLUSTER, 0, 1, None, Slots(1, 0, 52)),
        (CLUSTER, 1, 8, None, Slots(8, 1, 6)),
        ([Machine("unknown", None, None, 2)], 8, 8, 3, Slots(8, 8, 3, 8)),
        ([Machine("unknown", None, None, 2)], 8, 8, None, Slots(8, 8, 2, 8)),
        ([*LAPTOP, Machine("unknown", None, None, 8)], None, 1, None, Slots(1, 0, 10)),
        ([Machine("head", 0, 0, 1), *autoscaled({}, workers=0)], 1, 1, None, Slots(1, 1, 8)),  # KubeRay's from zero
        ([Machine("head", 0, 0, 1), *autoscaled({}, workers=0)], 1, 1, 32, Slots(1, 1, 32)),
    ],
)
def test_as_many_trials_as_fit(
    found: list[Machine], gpus: float | Literal["auto"] | None, cpus: float, concurrent: int | None, slots: Slots
) -> None:
    assert plan_slots(found, TrialResources(gpus_per_trial=gpus, cpus_per_trial=cpus, concurrent=concurrent)) == slots


@pytest.mark.parametrize(
    ("found", "gpus", "cpus", "workers", "slots"),
    [
        (LAPTOP, None, None, None, Slots(1, 0, 2, 1)),
        (LAPTOP, None, None, 2, Slots(2, 0, 1, 2)),
        ([Machine("machine", 8, 0, 2)], None, 4, 2, Slots(4, 0, 4, 2)),
        (CLUSTER, 2, None, None, Slots(2, 2, 6, 2)),
        (CLUSTER, None, None, 2, Slots(2, 2, 6, 2)),
        (CLUSTER, 0, None, 2, Slots(2, 0, 26, 2)),
        (CLUSTER, 0.25, None, None, Slots(1, 0.25, 48, 1)),
    ],
)
def test_workers_are_counted_with_their_trial(
    found: list[Machine], gpus: float | None, cpus: float | None, workers: int | None, slots: Slots
) -> None:
    asked = TrialResources(gpus_per_trial=gpus, cpus_per_trial=cpus, workers_per_trial=workers)
    assert plan_slots(found, asked) == slots


@pytest.mark.parametrize(
    ("found", "gpus", "cpus", "workers", "message"),
    [
        (
            CLUSTER,
            2,
            None,
            3,
            "--workers-per-trial: each worker of a trial must have a GPU of its own, got 3 with --gpus-per-trial 2; "
            "leave one of them out, or give --gpus-per-trial 0",
        ),
        (CLUSTER, 0.5, None, 2, "must have a GPU of its own, got 2 with --gpus-per-trial 0.5"),
        (CLUSTER, 2, 1, None, "--cpus-per-trial: must be above 0 and at least 1 a worker, got 1 for 2; leave it out"),
        (LAPTOP, None, None, 3, "--workers-per-trial: a trial must fit on one machine, got 3 where the largest has 2 "),
        (LAPTOP, None, None, 0, "--workers-per-trial: must be at least 1, got 0; leave it out for one a GPU"),
    ],
)
def test_workers_that_do_not_fit_are_refused(
    found: list[Machine], gpus: float | None, cpus: float | None, workers: int, message: str
) -> None:
    asked = TrialResources(gpus_per_trial=gpus, cpus_per_trial=cpus, workers_per_trial=workers)
    with pytest.raises(ConfigError) as caught:
        plan_slots(found, asked)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("found", "gpus", "cpus", "message"),
    [
        (
            LAPTOP,
            1,
            1,
            "--gpus-per-trial: a trial must fit on one machine, got 1 where the largest has 0 "
            "(1 x machine (2 CPU, 0 GPU)); ask for at most 0, or use a cluster that has more",
        ),
        (CLUSTER, 8, 8, "--gpus-per-trial: a trial must fit on one machine, got 8 where the largest has 4 "),
        (LAPTOP, 0, 3, "--cpus-per-trial: a trial must fit on one machine, got 3 where the largest has 2 "),
        (
            [Machine("a", 1, 4, 1), Machine("b", 8, 0, 1)],
            1,
            4,
            "both must fit on one machine, got 1 x a (1 CPU, 4 GPU)",
        ),
        (CLUSTER, 1.5, 1, "--gpus-per-trial: must be 0 or more, a fraction up to 1 or else whole, got 1.5; correct it"),
        (
            CLUSTER,
            math.nan,
            1,
            "--gpus-per-trial: must be 0 or more, a fraction up to 1 or else whole, got nan; correct it",
        ),
        (
            CLUSTER,
            1,
            math.inf,
            "--cpus-per-trial: must be 0 or more, a fraction up to 1 or else whole, got inf; correct it",
        ),
        (CLUSTER, -1, 1, "--gpus-per-trial: must be 0 or more, a fraction up to 1 or else whole, got -1; correct it"),
        (LAPTOP, 0, 0, "--cpus-per-trial: must be above 0 and at least 1 a worker, got 0 for 1; leave it out"),
    ],
)
def test_what_can_never_run_is_refused(found: list[Machine], gpus: float, cpus: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_slots(found, TrialResources(gpus_per_trial=gpus, cpus_per_trial=cpus))
    assert message in str(caught.value)


def test_an_autoscaler_counts_what_it_can_still_start() -> None:
    config = {
        "max_workers": 10,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 4}},
            "spot": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 8},
            "demand": {"resources": {"CPU": 8, "GPU": 1}},
            "off": {"resources": {"CPU": 8}, "max_workers": 0},
            "unknown": {"max_workers": 1},
        },
    }
    assert autoscaled(config, workers=4) == [
        Machine("spot", 16, 4, 6),
        Machine("demand", 8, 1, 6),
        Machine("unknown", None, None, 1),
    ]
    assert autoscaled(config, workers=10) == []
    assert autoscaled({}, workers=5) == [Machine("machine to come", None, None, 8)]
    # `ray up` on machines of one's own: one type for all.
    own = {
        "max_workers": 2,
        "head_node_type": "own",
        "available_node_types": {"own": {"resources": {}, "max_workers": 2}},
    }
    assert autoscaled(own, workers=0) == [Machine("own", None, None, 2)]


class Changing:
    """A fleet that is another one whenever it is counted."""

    def __init__(self, *found: list[Machine]) -> None:
        self._found = list(found)

    def machines(self) -> list[Machine]:
        return self._found.pop(0)


@pytest.mark.parametrize(("most", "counts"), [(8, [2, 8, 3, 1]), (2, [2, 2, 2, 1])])
def test_machines_that_come_and_go_are_counted(most: int, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    fleet: Any = Changing(CLUSTER, [Machine("machine", 3, 0, 1)], [])
    now = room(fleet, Slots(1, 0, 2), most)
    found = [now(most)]  # so soon it need not be counted again
    monkeypatch.setattr(preflight, "_COUNT_EVERY_S", 0.0)
    assert [*found, now(most), now(most), now(most)] == counts


def test_another_limit_counts_at_once() -> None:
    now = room(Changing(CLUSTER, CLUSTER), Slots(1, 0, 2), 2)  # type: ignore[arg-type]
    assert [now(2), now(8), now(8), now(3)] == [2, 8, 8, 3]


def test_machines_that_nobody_knows_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    unknown: Any = Changing([Machine("machine to come", None, None, 8)])
    progress.show()
    try:
        room(unknown, Slots(1, 0, 8), None)
        room(unknown, Slots(1, 0, 8), 4)
    finally:
        progress.show(False)
    assert capsys.readouterr().err == (
        "the autoscaler's machines are not known before they come: 8 trials at a time, each on 0 GPU, and more as they "
        "come; --concurrent and --gpus-per-trial say otherwise\n"
    )


def test_a_role_without_positives_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12)
    check_roles(dataset)
    roles = dataset.manifest.roles
    without = roles | {"validation": roles["validation"].model_copy(update={"positives": 0})}
    dataset.manifest = dataset.manifest.model_copy(update={"roles": without})
    with pytest.raises(ConfigError, match="validation must have positive and negative slices, got 0 positive of"):
        check_roles(dataset)


def test_an_objective_that_too_few_patients_measure_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=100)
    measured = len(
        set(dataset.role("validation").patients[dataset.role("validation").targets(["subdural"])[:, 0] == 1])
    )
    assert measured < 10
    check_objective(dataset.role("validation"), Objective(metric="average_precision"))
    with pytest.raises(ConfigError) as caught:
        check_objective(dataset.role("validation"), Objective(metric="roc_auc_subdural"))
    assert str(caught.value) == (
        f"objective: roc_auc_subdural needs 10 validation patients with subdural, got {measured} with subdural in "
        f"{tmp_path / 'data'}; choose a metric of `any`, or prepare more patients"
    )
    larger = make_dataset(tmp_path / "larger", patients=400)
    check_objective(larger.role("validation"), Objective(metric="roc_auc_subdural"))
    check_objective(larger.role("validation"), Objective(metric="weighted_log_loss", mode="min"))


def test_subtypes_that_no_label_table_gave_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12)
    check_trials(dataset, [Hyperparameters(labels="all")])
    pq.write_table(dataset.slices.drop_columns([*SUBTYPES]), str(dataset.files.slices))
    bare = PreparedDataset.open(dataset.files.root)
    check_trials(bare, [Hyperparameters(labels="any")])
    with pytest.raises(ConfigError, match="whose subtypes are known, got none for epidural, intraparenchymal, "):
        check_trials(bare, [Hyperparameters(labels="all")])


def test_neighbors_that_a_dataset_cannot_name_are_refused_and_slices_without_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12)
    trials = [Hyperparameters(), Hyperparameters(neighbors=1)]
    progress.show()
    try:
        check_trials(dataset, trials)
        pq.write_table(_without_places(dataset.slices, 3), str(dataset.files.slices))
        check_trials(PreparedDataset.open(dataset.files.root), trials)
    finally:
        progress.show(False)
    # The fourth slice of that patient has none either.
    told = "neighbors: 4 of 28 training slices have none, they stand in for them themselves\n"
    assert capsys.readouterr().err == told
    pq.write_table(_without_places(dataset.slices, 48), str(dataset.files.slices))
    nowhere = PreparedDataset.open(dataset.files.root)
    check_trials(nowhere, trials[:1])
    with pytest.raises(ConfigError, match="neighbors: 1 needs the series and position of slices, got none in"):
        check_trials(nowhere, trials)


def _without_places(slices: pa.Table, count: int) -> pa.Table:
    places = [*slices["position_mm"].to_pylist()[:-count], *[float("nan")] * count][::-1]
    return slices.set_column(slices.schema.get_field_index("position_mm"), "position_mm", [places])


def test_a_single_subtype_that_no_label_table_gave_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=12)
    pq.write_table(dataset.slices.drop_columns(["subdural"]), str(dataset.files.slices))
    partly = PreparedDataset.open(dataset.files.root)
    with pytest.raises(ConfigError, match="whose subtypes are known, got none for subdural; prepare with "):
        check_trials(partly, [Hyperparameters(labels="all")])


def test_an_objective_of_a_rare_subtype_is_refused_of_a_fold(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=100)
    with pytest.raises(ConfigError, match="roc_auc_subdural needs 10 validation patients with subdural, got "):
        check_objective(HeldOut(dataset, 1).role("validation"), Objective(metric="roc_auc_subdural"))


def test_an_architecture_that_answers_one_label_is_refused_for_six(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneLogit(Architecture):
        def build(self, _: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 1))

        def stages(self, _: NetworkFields) -> dict[str, tuple[str, ...]]:
            return {"head": ("1",)}

    monkeypatch.setattr(ARCHITECTURES, "registered", {})
    ARCHITECTURES.register("one_logit", OneLogit())
    dataset = make_dataset(tmp_path / "data", patients=12)
    check_trials(dataset, [Hyperparameters(architecture="one_logit")])
    with pytest.raises(ConfigError, match=r"labels: one_logit must give 6 logits a slice for all, got \(2, 1\) of two"):
        check_trials(dataset, [Hyperparameters(architecture="one_logit", labels="all")])


def of_side(folder: Path, side: int) -> PreparedDataset:
    dataset = make_dataset(folder / "data", patients=12)
    dataset.manifest = dataset.manifest.model_copy(update={"size": side})
    return dataset


@pytest.mark.parametrize(
    ("side", "parameters", "message"),
    [
        (32, {"blocks": {"int": [1, 6]}}, "blocks: each block halves the image, 6 are too many for 32 px"),
        (
            32,
            {"architecture": "stacked_cnn", "convolutions": {"choice": ["3/2", "9/8,9/8"]}, "padding": "valid"},
            "convolutions: a pixel must be left after each block, got none after 9/8, block 2 of 9/8,9/8 on 32 px",
        ),
        (
            512,
            {"architecture": "stacked_cnn", "convolutions": "3/1", "filters": {"int": [1, 512]}, "dense": 64},
            "dense: at most 1,073,741,824 weights of a layer must hold, got 134,217,728 pixels",
        ),
        (
            16,
            {"architecture": {"choice": ["resnet18", "densenet121"]}},
            "architecture: images must be large enough for densenet121, got 16 px; leave it out or prepare larger",
        ),
    ],
)
def test_networks_that_do_not_fit_the_images_are_refused(
    tmp_path: Path, side: int, parameters: dict[str, Any], message: str
) -> None:
    source = {"name": "x", "budget": {"images": 9, "report_every": 1, "first_rung": 1}, "parameters": parameters}
    with pytest.raises(ConfigError) as caught:
        check_trials(of_side(tmp_path, side), sampled(parse_space(source, "x.yaml")))
    assert message in str(caught.value)


def test_a_resolution_above_the_images_is_refused_before_weights_are_looked_for(tmp_path: Path) -> None:
    parameters = {"resolution": {"choice": [0, 32, 48, 64]}, "weights": {"fixed": "nowhere.safetensors"}}
    source = {"name": "x", "budget": {"images": 9, "report_every": 1, "first_rung": 1}, "parameters": parameters}
    trials = sampled(parse_space(source, "x.yaml"))
    with pytest.raises(ConfigError, match=r"resolution: must be at most the 32 px .*, got 64; lower it, or prepare"):
        check_trials(of_side(tmp_path, 32), trials)


def test_a_file_of_weights_is_compared_with_each_network(tmp_path: Path) -> None:
    path, dataset = tmp_path / "w.safetensors", of_side(tmp_path, 32)
    state = build_network(Hyperparameters(filters=8), (3, 32, 32)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    fitting = Hyperparameters(filters=8, weights=str(path))
    check_trials(dataset, [fitting, fitting.model_copy(update={"dense": 8})])
    with pytest.raises(
        ConfigError, match=r"w.safetensors: blocks.block1.0.weight of plain_cnn must have shape \(4, 3, "
    ):
        check_trials(dataset, [fitting, fitting.model_copy(update={"filters": 4})])


def test_a_machine_without_room_for_copies_of_a_dataset_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICH_RAY_CACHE_GB", "100")
    dataset = make_dataset(tmp_path / "data", patients=12)
    assert dataset.images_bytes == 48 * 3 * 32 * 32
    local, fingerprint = str(dataset.files.root), dataset.manifest.fingerprint
    away = locate(f"memory://{tmp_path.name}")
    write_bytes(away / "dataset.json", dataset.files.manifest.read_bytes())
    assert preflight._look(str(away), fingerprint, None, 100_000) == ""
    assert preflight._look(local, fingerprint, None, 10**15) == ""  # it is mapped where it lies
    assert preflight._look(str(away), fingerprint, None, 148_000_000_000) == (
        f"ICH_RAY_CACHE_GB: must be at least 148 for copies of {away}, got 100; set it where Ray is started"
    )


def test_weights_that_would_be_fetched_are_looked_for_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pretrained_weights, "check_weights", lambda *named: asked.append(" ".join(named)))
    dataset = of_side(tmp_path, 64)
    trials = [Hyperparameters(), Hyperparameters(architecture="resnet18", weights="imagenet")]
    check_trials(dataset, trials, fetch=False)
    assert asked == []
    check_trials(dataset, trials)
    assert asked == ["plain_cnn none", "resnet18 imagenet"]


def test_a_network_that_several_workers_cannot_train_is_refused_before_its_first_trial(tmp_path: Path) -> None:
    dataset = of_side(tmp_path, 224)
    networks = [Hyperparameters(architecture=f"timm/{name}") for name in ("test_resnet", "levit_128s")]
    check_workers(dataset, networks, workers=1)
    check_workers(dataset, networks[:1], workers=2)
    with pytest.raises(ConfigError, match=r"must be nn.BatchNorm2d, got BatchNorm1d at body\.stages\S+; use nn.Batch"):
        check_workers(dataset, networks, workers=2)


def test_the_plan_counts_what_asha_spares(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=20)
    source = {
        "name": "x",
        "budget": {"images": 900, "report_every": 100, "first_rung": 100, "reduction": 3, "min_peers": 2},
        "parameters": {"dropout": {"uniform": [0, 0.5]}},
    }
    plan = plan_trials(parse_space(source, "x.yaml"), dataset, 27, Slots(1, 0, 2))
    assert (plan.rungs, plan.reaching) == ((100, 300), (27, 9, 3))
    assert plan.images == 27 * 100 + 9 * 200 + 3 * 600
    assert plan.images_at_most == 27 * 900
    roles = dataset.manifest.roles
    assert plan.mapped_bytes == (roles["train"].slices + roles["validation"].slices) * 3 * 32 * 32
    assert "27 trials, 2 at a time, each on 1 CPU and 0 GPU" in str(plan)
    assert "9 trials past 100, 3 trials past 300" in str(plan)
    assert "about 6,300, 74% less than the 24,300 without stopping" in str(plan)


def test_the_plan_of_a_stopping_rule_that_tells_nothing_counts_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(StoppingRule):
        def offer(self, number: int, images_seen: int, value: float | None) -> None: ...

    monkeypatch.setattr(STOPPING_RULES, "registered", {"silent": Silent})
    budget = {"images": 900, "report_every": 100, "first_rung": 100, "rule": "silent"}
    source = {"name": "x", "budget": budget, "parameters": {"dropout": {"uniform": [0, 0.5]}}}
    plan = plan_trials(parse_space(source, "x.yaml"), make_dataset(tmp_path / "data"), 27, Slots(1, 0, 2))
    assert (plan.rungs, plan.reaching, plan.images) == (None, (27,), 27 * 900)
    assert "rungs: unknown, counted as if no trial is stopped early" in str(plan)
