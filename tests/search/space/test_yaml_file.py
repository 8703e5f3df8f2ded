from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.errors import SpaceError
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.space.yaml_file import load_space, parse_space

REPOSITORY = Path(__file__).parents[3]
BUDGET = "budget: {images: 900, report_every: 100, first_rung: 100}"
GOOD = f"""
name: good
{BUDGET}
parameters:
  architecture: {{choice: [plain_cnn, resnet18]}}
  learning_rate: {{loguniform: [1e-5, 1e-1]}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def parameters(line: str) -> str:
    return f"name: x\n{BUDGET}\nparameters:\n  {line}\n"


def test_a_space_is_read(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, GOOD))
    assert space.name == "good"
    assert space.objective.metric == "average_precision"
    assert space.rungs() == [100, 300]
    assert [spec.name for spec in space.parameters] == ["architecture", "learning_rate"]
    assert space.parameters[1].values == (1e-5, 1e-1)
    assert space.source["parameters"]["learning_rate"] == {"loguniform": [1e-5, 1e-1]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "learning_rte: {uniform: [0.1, 1]}",
            "learning_rte: must be a parameter of the model, got 'learning_rte' (did you mean 'learning_rate'?)",
        ),
        (
            "learning_rate: {uniform: [0.1, 0.001]}",
            "learning_rate: low < high must hold, got low=0.1, high=0.001; swap them, or use fixed for one value",
        ),
        (
            "decay: {loguniform: [0, 0.1]}",
            "decay: low > 0 must hold for loguniform, got low=0.0; raise it, or use uniform",
        ),
        (
            "schedule: {choice: [cosine, flat_cosin]}",
            "schedule: input should be 'inverse_time', 'constant', 'cosine', 'flat_cosine' or one that was "
            "registered, got 'flat_cosin' (did you mean 'flat_cosine'?)",
        ),
        ("warmup: {fixed: 1.0}", "warmup: input should be less than 1, got 1.0"),
        ("decay_norms: {choice: [true, 0]}", "decay_norms: input should be a valid boolean, got 0"),
        ("ema: {choice: [0.99, 1.0]}", "ema: input should be less than 1, got 1.0"),
        ("clip: {uniform: [-1, 1]}", "clip: input should be greater than or equal to 0, got -1.0"),
        (
            "optimizer: {choice: []}",
            "optimizer: choice must be a list of at least one value, got []; list the values to try",
        ),
        ("optimizer: {choice: [sgd, sgd]}", "optimizer: every choice must be listed once, got 'sgd' twice; remove one"),
        (
            "optimizer: {choice: [sgd, addam]}",
            "input should be 'sgd', 'adam' or 'adamw', got 'addam' (did you mean 'adam'?)",
        ),
        ("dropout: {uniform: [0, 1]}", "dropout: input should be less than 1, got 1.0"),
        ("batch_size: {choice: [64, 12.5]}", "batch_size: input should be a valid integer, got 12.5"),
        ("batch_size: {uniform: [16, 64]}", "batch_size: input should be a valid integer, got 16.0"),
        ("batch_size: {int: [16, 64.5]}", "batch_size: int must be [low, high], two integers, got [16, 64.5]"),
        ("dropout: {uniform: [0.1]}", "dropout: uniform must be [low, high], two finite numbers, got [0.1]"),
        ("dropout: {uniform: [0.1, .nan]}", "dropout: uniform must be [low, high], two finite numbers, got [0.1, nan]"),
        ("dropout: {choice: [2024-01-01]}", "dropout: a value must be text, a finite number, true or false, got "),
        (
            "dropout: {unifrom: [0, 0.5]}",
            "dropout: the key must be one of choice, uniform, loguniform, int, fixed, when, prior, width, weight, got "
            "'unifrom' (did you mean 'uniform'?)",
        ),
        (
            "dropout: {uniform: [0, 0.5], fixed: 0.1}",
            "dropout: exactly one of choice, uniform, loguniform, int, fixed must be given, got ['uniform', 'fixed']",
        ),
        (
            "dropout: {when: {optimizer: sgd}}",
            "dropout: exactly one of choice, uniform, loguniform, int, fixed must be",
        ),
        (
            "momentum: {fixed: 0.9, when: {optimiser: sgd}}",
            "momentum: when must name a parameter of this space, got 'optimiser'",
        ),
        (
            "{momentum: {fixed: 0.9, when: {optimizer: sgdd}}, optimizer: {choice: [sgd, adam]}}",
            "momentum: when optimizer must be a value it can take (choice ['sgd', 'adam']), got 'sgdd' "
            "(did you mean 'sgd'?)",
        ),
        (
            "{blocks: {int: [1, 3], when: {dropout: 0.5}}, dropout: {uniform: [0, 0.5]}}",
            "blocks: when must name a choice, int or fixed parameter, got dropout (uniform)",
        ),
        (
            "{blocks: {int: [1, 3], when: {filters: 4}}, filters: {choice: [4, 8], when: {blocks: 2}}}",
            "parameters: conditions must not form a circle, got one among blocks, filters; break it",
        ),
        ("dropout: {uniform: [0, 0.5], when: 3}", "dropout: when must be a mapping of parameter to value"),
        (
            "{optimizer: {choice: [sgd, adam]}, momentum: {fixed: 0.9, when: {optimizer: sgd}}, "
            "dropout: {uniform: [0.0, 0.5], when: {optimizer: adam, momentum: 0.9}}}",
            "dropout: its condition must be able to hold, got optimizer=adam with momentum, which exists only when "
            "optimizer=sgd; change one of the conditions",
        ),
        (
            "weights: {choice: [none, '/data/\u3000x.safetensors']}",
            "weights: a text must be of printable characters, got '/data/\\u3000x.safetensors'; choose another, rename",
        ),
        (
            "learning_rate: {{ lr }}",
            "must be YAML, got a mapping or list as a key, such as a {{ template }} that was not filled in, in line 4",
        ),
        ("dropout: 2024-02-30", "must be YAML, got dropout: '2024-02-30', which no timestamp can be, in line 4"),
        (f"dense: 1{'0' * 400}", f"must be YAML, got dense: '1{'0' * 39}', which no int can be, in line 4"),
        (f"dense: [1{'0' * 5000}]", f"must be YAML, got '1{'0' * 39}', which no int can be, in line 4"),
        (f"dense: 0x{'f' * 5000}", f"must be YAML, got dense: '0x{'f' * 38}', which no int can be, in line 4"),
        ("dense: !!bool perhaps", "must be YAML, got dense: 'perhaps', which no bool can be, in line 4"),
        (f"dense: {'[' * 5000}{']' * 5000}", "must be YAML, got hundreds of lists within each other; write fewer"),
    ],
)
def test_a_parameter_that_cannot_be_drawn_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path, parameters(line)))
    assert str(caught.value).startswith("space.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD.replace("name:", "nmae:"),
            "space.yaml: nmae: the key must be one of name, objective, budget,",
        ),
        (GOOD.replace("name: good\n", ""), "space.yaml: name: must be given, got nothing; add it"),
        (
            GOOD + "pionts: []\n",
            "space.yaml: pionts: the key must be one of name, objective, budget, parameters, sampler, "
            "points, candidates, searches, constraints, got 'pionts' "
            "(did you mean 'points'?)",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 1000"),
            "space.yaml: budget.first_rung: first_rung <= images must hold, got first_rung=1000, images=900; "
            "lower first_rung or raise images",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 250"),
            "space.yaml: budget.first_rung: must be a multiple of report_every, so that rungs fall on reports, "
            "got first_rung=250, report_every=100; use 200",
        ),
        (
            GOOD.replace("images: 900", "images: 940"),
            "space.yaml: budget.images: must be a multiple of report_every, so that rungs fall on reports, "
            "got images=940, report_every=100; use 900",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 100, reduction: 1"),
            "space.yaml: budget.reduction: input should be greater than or equal to 2, got 1",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 100, min_pears: 1"),
            "space.yaml: budget.min_pears: the key must be one of images, report_every, first_rung, reduction, "
            "min_peers, rule, hedge, unit, got 'min_pears' (did you mean 'min_peers'?)",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 100, rule: asah"),
            "space.yaml: budget.rule: must be one of asha, got 'asah' (did you mean 'asha'?); import the module that "
            "registers it first",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 100, unit: money"),
            "space.yaml: budget.unit: input should be 'images' or 'cost', got 'money'",
        ),
        (
            GOOD.replace("first_rung: 100", "first_rung: 100, unit: cost").replace(
                "loguniform: [1e-5, 1e-1]", "choice: [1e-3]"
            )
            + "sampler: grid\n",
            "space.yaml: budget.unit: cost weighs the networks that are drawn, got a grid; leave it out",
        ),
        (
            f"name: x\n{BUDGET}\ncandidates: [{{blocks: 2}}]\n".replace("rung: 100", "rung: 100, unit: cost"),
            "space.yaml: budget.unit: cost weighs the networks that are drawn, got a list of candidates; leave it out",
        ),
        (GOOD.replace("images: 900", "images: '900'"), "budget.images: input should be a valid integer, got '900'"),
        (
            GOOD + "objective: {metric: accuracy}\n",
            "space.yaml: objective.metric: must be one of average_precision, roc_auc, f2, log_loss, weighted_log_loss,",
        ),
        (
            GOOD + "objective: {metric: log_loss, mode: max}\n",
            "space.yaml: objective.mode: log_loss is better at its min, got 'max'; write min",
        ),
        (
            GOOD + "points: [{dropout: 0.1}]\n",
            "space.yaml: points[0]: must use parameters of this space, got 'dropout'",
        ),
        (
            GOOD + "points: [{architecture: plain_cnn}, {learning_rate: 1.0}]\n",
            "space.yaml: points[1]: learning_rate must lie in the space (loguniform [1e-05, 0.1]), got 1.0",
        ),
        (
            GOOD
            + "  blocks: {int: [1, 3], when: {architecture: plain_cnn}}\npoints: [{architecture: resnet18, blocks: 2}]",
            "space.yaml: points[0]: blocks exists only when architecture=plain_cnn, got another value or none; "
            "add or remove it",
        ),
        ("", "space.yaml: must be a mapping with name, budget and parameters, got an empty file"),
        ("- 1\n- 2\n", "space.yaml: must be a mapping with name, budget and parameters, got a list"),
        ("name: a\n\tbudget: 1\n", "space.yaml: must be YAML, got "),
        ("name: a\nname: b\n", "space.yaml: must be YAML, got the key 'name' twice in line 2"),
        (GOOD.replace("choice: [", "choice: [1, choice: ["), "space.yaml: must be YAML, got "),
        ("name: !!python/object:os.system {}\n", "space.yaml: must be YAML, got "),
    ],
)
def test_a_file_that_is_not_a_space_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NO_STAGE = "unfreeze_from must be a stage of {} (all, stem, {}, head), got {!r}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{architecture: resnet18, unfreeze_from: {choice: [layer4, layre4]}}",
            NO_STAGE.format("resnet18", "layer1, layer2, layer3, layer4", "layre4")
            + " (did you mean 'layer4'?); use one",
        ),
        (
            "{architecture: {choice: [plain_cnn, resnet18]}, unfreeze_from: layer4}",
            NO_STAGE.format("plain_cnn", "block1, block2", "layer4"),
        ),
        ("{blocks: {int: [2, 4]}, unfreeze_from: block3}", NO_STAGE.format("plain_cnn", "block1, block2", "block3")),
        (
            "{architecture: {choice: [resnet18, stacked_cnn]}, weights: {choice: [none, imagenet]}}",
            "weights imagenet must stand beside a family of torchvision or timm, got stacked_cnn; use none, or give it "
            "`when: ",
        ),
        (
            "weights: imagenet",
            "weights imagenet must stand beside a family of torchvision or timm, got plain_cnn; use none",
        ),
    ],
)
def test_what_an_architecture_does_not_have_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path, parameters(line)))
    assert message in str(caught.value)


def test_weights_and_stages_stand_beside_their_architectures(tmp_path: Path) -> None:
    line = (
        "{architecture: {choice: [plain_cnn, resnet18, densenet121]}, "
        "weights: {choice: [none, imagenet], when: {architecture: [resnet18, densenet121]}}, "
        "unfreeze_from: {choice: [all, layer4], when: {architecture: resnet18, weights: imagenet}}}"
    )
    assert len(load_space(write(tmp_path, parameters(line))).parameters) == 3


def test_how_weights_are_fitted_may_be_searched(tmp_path: Path) -> None:
    line = (
        "{schedule: {choice: [inverse_time, constant, cosine, flat_cosine]}, warmup: {fixed: 0.05}, "
        "decay: {loguniform: [1e-3, 1e-1], when: {schedule: inverse_time}}, decay_norms: {choice: [true, false]}, "
        "clip: {choice: [0, 1]}, ema: {choice: [0, 0.99, 0.999]}}"
    )
    space = load_space(write(tmp_path, parameters(line)))
    drawn = [space.draw(RandomSuggest(seed)).parameters for seed in range(40)]
    assert {(one["schedule"], "decay" in one) for one in drawn} == {
        ("inverse_time", True), ("constant", False), ("cosine", False), ("flat_cosine", False)
    }  # fmt: skip
    # Beside another schedule it does nothing, and harms nothing: a default would stand there all the same.
    assert load_space(write(tmp_path, parameters("{schedule: cosine, decay: {uniform: [0, 1]}}"))).name == "x"


# Of 164 pairs a single one breaks the rule: 64 draws seldom meet it.
RARE = "{epochs: {int: [1, 41]}, training_slices: {choice: [100, 200, 300, 400]}}"


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_every_pair_of_values_is_checked(tmp_path: Path, sampler: str) -> None:
    text = parameters(RARE).replace("images: 900", "images: 16300") + f"sampler: {sampler}\n"
    with pytest.raises(SpaceError, match=r"at most budget.images \(16300\), got 41 x 400; change one of them"):
        load_space(write(tmp_path, text))
    assert load_space(write(tmp_path, text.replace("16300", "16400")))


@pytest.mark.parametrize("points", ["", "points: [{training_slices: 0}]"])
def test_of_too_many_values_the_ends_are_checked(tmp_path: Path, points: str) -> None:
    text = parameters("{epochs: {fixed: 1}, training_slices: {int: [%d, 20000]}}")
    text = text.replace("report_every: 100", "report_every: 1").replace("900", "20000")
    with pytest.raises(SpaceError, match="epochs counts passes over training_slices, which must be given with it"):
        load_space(write(tmp_path, text % 0 + points))
    assert load_space(write(tmp_path, text % 1))


def test_a_point_cannot_depend_on_what_does_not_exist(tmp_path: Path) -> None:
    text = parameters(
        "{optimizer: {choice: [sgd, adam]}, momentum: {fixed: 0.9, when: {optimizer: sgd}}, "
        "dropout: {uniform: [0.0, 0.5], when: {momentum: 0.9}}}"
    )
    assert load_space(write(tmp_path, text + "points: [{optimizer: sgd, dropout: 0.3}]")).points
    with pytest.raises(
        SpaceError, match=r"points\[0\]: dropout exists only when momentum=0.9, got another value or none"
    ):
        load_space(write(tmp_path, text + "points: [{optimizer: adam, dropout: 0.3}]"))


@pytest.mark.parametrize("name", ["default", "demo", "report_a", "report_b", "small"])
def test_the_spaces_that_are_shipped_are_accepted(name: str) -> None:
    assert load_space(REPOSITORY / "search_spaces" / f"{name}.yaml").name == name


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"none\.yaml: a search space must be a readable YAML file"):
        load_space(tmp_path / "none.yaml")


def test_a_bare_value_is_fixed(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, parameters("dropout: 0.25")))
    assert space.draw(RandomSuggest(0)).parameters == {"dropout": 0.25}


def test_the_demo_space_stops_trials_early() -> None:
    space = load_space(REPOSITORY / "search_spaces" / "demo.yaml")
    assert {"architecture", "batch_size", "learning_rate", "decay", "dropout", "optimizer"} <= {
        spec.name for spec in space.parameters
    }
    assert space.rungs()
    assert space.rungs()[0] <= space.budget.images / 4


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    parameters = {"weights": {"choice": ["none", "s3://key:hunter2@bucket/x.safetensors"]}}
    budget = {"images": 3, "report_every": 1, "first_rung": 1}
    with pytest.raises(SpaceError, match=r"token or signature, got one in 's3://bucket/x\.safetensors'") as told:
        parse_space({"name": "x", "budget": budget, "parameters": parameters}, "x.yaml")
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("labels", "ok"),
    [
        ("  labels: all\n", True),
        ("", False),
        ("  labels: {choice: [any, all]}\n", False),
        ("  labels: {choice: [all], when: {architecture: resnet18}}\n", False),
    ],
)
@pytest.mark.parametrize("metric", ["roc_auc_subdural", "weighted_log_loss, mode: min"])
def test_a_metric_of_subtypes_needs_them_in_every_trial(tmp_path: Path, labels: str, ok: bool, metric: str) -> None:
    path = write(tmp_path, f"{GOOD}{labels}objective: {{metric: {metric}}}\n")
    if ok:
        assert load_space(path).objective.metric == metric.partition(",")[0]
        return
    with pytest.raises(SpaceError, match=r"needs networks that answer the subtypes in every trial, got labels: any; "):
        load_space(path)


def test_a_metric_of_subtypes_needs_them_in_every_listed_trial(tmp_path: Path) -> None:
    listed = f"name: x\n{BUDGET}\nobjective: {{metric: roc_auc_subtypes}}\ncandidates: "
    assert load_space(write(tmp_path, listed + "[{labels: all}, {labels: all, blocks: 1}]\n")).listed is not None
    with pytest.raises(SpaceError, match="got labels: any"):
        load_space(write(tmp_path, listed + "[{labels: all}, {blocks: 1}]\n"))
