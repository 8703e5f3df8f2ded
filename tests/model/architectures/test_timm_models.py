"""timm's networks by name, with files that are written here: the smallest of each kind, which timm has for tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.layers import DropPath

from ich_ray.errors import ConfigError, SpaceError
from ich_ray.model.architectures import ARCHITECTURES, timm_models
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import Network, build_network
from ich_ray.model.pretrained_weights import check_weights
from ich_ray.search.space.yaml_file import parse_space

KINDS = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit")
SIDE = 64
HEADS = {"test_resnet": "fc", "test_efficientnet": "classifier", "test_convnext": "head.fc", "test_vit": "head"}
STEMS = dict(zip(KINDS, ("conv1.0", "conv_stem", "stem.0", "patch_embed.proj"), strict=True))


def named(name: str, **more: object) -> Hyperparameters:
    return Hyperparameters.model_validate({"architecture": f"timm/{name}", **more})


def built(parameters: Hyperparameters, channels: int = 3, side: int = SIDE) -> Network:
    return build_network(parameters, (channels, side, side))


def file_of(name: str, path: Path) -> Path:
    """A file as timm's are: three channels, its own side, a thousand classes."""
    torch.manual_seed(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()}, path)
    return path


@pytest.mark.parametrize("channels", [3, 9, 15])
@pytest.mark.parametrize("name", KINDS)
def test_uint8_in_float32_logits_out_for_any_number_of_channels(name: str, channels: int) -> None:
    parameters = named(name, labels="all", dropout=0.25)
    ARCHITECTURES[parameters.architecture].check(parameters, (channels, SIDE, SIDE))
    network = built(parameters, channels)
    logits = network(torch.zeros((2, channels, SIDE, SIDE), dtype=torch.uint8))
    assert (logits.shape, logits.dtype) == ((2, 6), torch.float32)
    logits.sum().backward()
    before_the_head = [
        getattr(module, "drop_rate", getattr(module, "p", None))
        for path, module in network.body.named_modules()
        if path in {"", "head.drop", "head_drop"}
    ]
    assert 0.25 in before_the_head


def test_three_windows_of_each_slice_are_normalized_alike() -> None:
    mean, std = ARCHITECTURES["timm/test_vit"].normalization(9)
    assert mean == (0.5, 0.5, 0.5) * 3
    assert ARCHITECTURES["timm/resnet18.tv_in1k"].normalization(6)[0] == (0.485, 0.456, 0.406) * 2
    assert ARCHITECTURES["timm/resnet18"].normalization(1)[1] == pytest.approx((0.226,))
    assert len(std) == 9


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ["stem", "layer1", "layer2", "layer3", "layer4", "head"]),
        ("test_efficientnet", ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "head"]),
        ("test_convnext", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]),
        ("test_vit", ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "head"]),
        ("caformer_s18", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]),  # timm has no groups for it
        ("selecsls42", ["stem", *(f"features.{number}" for number in range(6)), "head_stage", "head"]),
    ],
)
def test_stages_are_those_of_timm_and_hold_every_weight(name: str, stages: list[str]) -> None:
    parameters = named(name)
    found = ARCHITECTURES[parameters.architecture].stages(parameters)
    assert list(found) == stages
    with torch.device("meta"):
        body = built(parameters).body
    for weight, _ in body.named_parameters():
        held = [stage for stage, paths in found.items() if f"{weight}.".startswith(tuple(f"{p}." for p in paths))]
        assert len(held) == 1, weight


def test_a_transformer_is_trained_from_a_block_on() -> None:
    network = built(named("test_vit", unfreeze_from="blocks.5"))
    moving = {name.removeprefix("body.") for name, weight in network.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[0].split(".mlp")[0].split(".attn")[0].split(".norm")[0] for name in moving} == {
        "blocks.5", "norm", "head",
    }  # fmt: skip
    assert not network.body.get_parameter("pos_embed").requires_grad
    with pytest.raises(ConfigError, match=r"timm/test_vit has the stages all, stem, blocks.0, .* got 'layer4'"):
        built(named("test_vit", unfreeze_from="layer4"))


@pytest.mark.parametrize("channels", [3, 9])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_timm_is_read_as_timm_reads_it(name: str, channels: int, tmp_path: Path) -> None:
    """A transformer's positions are resampled to the side, kernels repeated for more channels; the head stays new."""
    path = file_of(name, tmp_path / "timm.safetensors")
    body = built(named(name, weights=str(path)), channels).body
    sided = {"img_size": SIDE} if name == "test_vit" else {}
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}, "num_classes": 1}
    expected = timm.create_model(name, in_chans=channels, **given, **sided).state_dict()
    found = body.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        if not key.startswith(f"{HEADS[name]}."):
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7)
    torch.manual_seed(1)
    kernels = timm.create_model(name).get_parameter(f"{STEMS[name]}.weight")
    torch.testing.assert_close(found[f"{STEMS[name]}.weight"], kernels.repeat(1, channels // 3, 1, 1) * (3 / channels))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = file_of("test_resnet", tmp_path / "timm.safetensors")
    with pytest.raises(
        ConfigError, match=r"timm.safetensors: \S+ of timm/test_vit must have shape .*, got nothing; use"
    ):
        built(named("test_vit", weights=str(path)))
    with pytest.raises(
        ConfigError, match=r"conv1.0.weight of timm/resnet10t must have shape \(24, 3, .*got shape \(16,"
    ):
        built(named("resnet10t", weights=str(path)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache, empty and without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_imagenet_weights_come_from_the_cache_of_the_hub(hub: Path) -> None:
    folder = hub / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file_of("test_vit", folder / "snapshots" / ("0" * 40) / "model.safetensors")
    check_weights("timm/test_vit", "imagenet")
    torch.manual_seed(1)
    source = timm.create_model("test_vit").state_dict()
    body = built(named("test_vit", weights="imagenet"), side=160).body
    assert torch.equal(body.get_parameter("pos_embed"), source["pos_embed"])
    assert not torch.equal(body.get_parameter("head.weight"), source["head.weight"][:1])
    assert (
        built(named("test_vit", weights="imagenet"), 9).body.get_parameter("pos_embed").shape[1]
        == 1 + (SIDE // 16) ** 2
    )


def test_imagenet_weights_that_cannot_be_fetched_are_refused_in_a_line(hub: Path) -> None:
    place = re.escape(str(hub / "models--timm--test_resnet.r160_in1k"))
    with pytest.raises(
        ConfigError, match=rf"^weights: imagenet of timm/test_resnet needs {place}, got \w+ while"
    ) as one:
        check_weights("timm/test_resnet", "imagenet")
    assert str(one.value).endswith(
        "; copy models--timm--test_resnet.r160_in1k there from a machine with a network, set HF_HOME, or use weights: "
        "none"
    )
    with pytest.raises(ConfigError, match=r"got timm/test_mambaout, of which timm has no weights; use none, or a safe"):
        check_weights("timm/test_mambaout", "imagenet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"must be a network that timm \S+ has, got 'timm/resnet81' \(did you mean 'timm/resnet18'\?\)"),
        (
            "resnet18.tv_in2k",
            r"must be .* got 'timm/resnet18.tv_in2k' \(did you mean 'timm/resnet18.tv_in1k'\?\); timm.list_models",
        ),
        ("hf-hub.evil", r"must be a network that timm \S+ has, got 'timm/hf-hub.evil'"),
    ],
)
def test_a_network_that_timm_does_not_have_is_refused(name: str, message: str) -> None:
    budget = {"images": 9, "report_every": 1, "first_rung": 1}
    space = {"name": "x", "budget": budget, "parameters": {"architecture": {"choice": ["plain_cnn", f"timm/{name}"]}}}
    with pytest.raises(SpaceError, match=rf"^x.yaml: architecture: {message}"):
        parse_space(space, "x.yaml")
    with pytest.raises(ConfigError, match=rf"^architecture: {message}"):
        built(named(name))


def test_a_space_of_timm_is_checked_as_others_are() -> None:
    budget = {"images": 9, "report_every": 1, "first_rung": 1}
    parameters = {"architecture": "timm/test_resnet", "weights": "imagenet", "unfreeze_from": "layer4"}
    parse_space({"name": "x", "budget": budget, "parameters": parameters}, "x.yaml")
    with pytest.raises(
        SpaceError, match=r"unfreeze_from must be a stage of timm/test_resnet \(all, stem, layer1, .*'stage4'"
    ):
        parse_space({"name": "x", "budget": budget, "parameters": {**parameters, "unfreeze_from": "stage4"}}, "x.yaml")


@pytest.mark.parametrize("name", ["hf-hub:evil/x", "../x", "", "a b"])
def test_what_is_no_name_of_a_network_is_never_given_to_timm(name: str) -> None:
    assert f"timm/{name}" not in ARCHITECTURES
    with pytest.raises(ConfigError, match=r"must be one of plain_cnn, .*, timm/NAME, got"):
        ARCHITECTURES[f"timm/{name}"]


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("test_vit", 60, "got 3x60x60: its patches of 16 px must divide them; leave it out or prepare other images"),
        ("test_vit", 8, "got 3x8x8: "),
        ("vgg11", 16, "got 3x16x16: "),
        ("efficientformer_l1", 128, "got 3x128x128: "),
    ],
)
def test_images_that_do_not_fit_are_refused(name: str, side: int, message: str) -> None:
    parameters = named(name)
    with pytest.raises(ConfigError) as caught:
        ARCHITECTURES[parameters.architecture].check(parameters, (3, side, side))
    assert str(caught.value).startswith(f"architecture: images must fit timm/{name}, {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("test_resnet", "layer4"), ("test_efficientnet", "bn2"), ("test_convnext", "norm_pre")],
)
def test_heat_maps_look_at_what_is_pooled(name: str, layer: str) -> None:
    parameters = named(name)
    assert ARCHITECTURES[parameters.architecture].heat_layer(parameters) == layer
    network = built(parameters)
    seen: list[torch.Tensor] = []
    network.body.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    network(torch.zeros((2, 3, SIDE, SIDE), dtype=torch.uint8))
    assert [tuple(one.shape[2:]) for one in seen] == [(2, 2)]


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_heat_maps_of_tokens_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"--heatmaps: a network must end in a map of places, .*, got timm/{name}, which"
    ):
        ARCHITECTURES[f"timm/{name}"].heat_layer(named(name))


def test_a_search_is_read_without_timm() -> None:
    code = (
        "import sys, ich_ray; from ich_ray.model.hyperparameters import Hyperparameters as h; "
        "h(architecture='timm/resnet18').identity(); print([name in sys.modules for name in ('timm', 'torch')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[False, False]"


@pytest.mark.parametrize("name", KINDS)
def test_first_weights_follow_from_the_seed_alone(name: str) -> None:
    drawn = []
    timm_models._outline.cache_clear()
    for _ in range(2):  # the first one also asks timm for its facts
        torch.manual_seed(5)
        drawn.append(built(named(name)).state_dict())
    for key, value in drawn[0].items():
        assert torch.equal(value, drawn[1][key]), key


def test_no_block_is_left_out_at_random() -> None:
    with torch.device("meta"):
        usual = timm.create_model("swin_s3_tiny_224")
        ours = built(named("swin_s3_tiny_224"))
    assert [module for module in usual.modules() if isinstance(module, DropPath) and module.drop_prob]
    assert not [module for module in ours.modules() if isinstance(module, DropPath) and module.drop_prob]
