from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.architectures.torchvision_models import TorchvisionModel
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.model.resampling import reduced

FAMILIES = [name for name in ARCHITECTURES.names() if isinstance(ARCHITECTURES[name], TorchvisionModel)]


def images(count: int = 2, channels: int = 3, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def trainable(network: nn.Module) -> set[str]:
    return {name for name, weight in network.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [*((name, 3) for name in ARCHITECTURES.names()), ("plain_cnn", 1), ("mobilenet_v3_small", 1)],
)
def test_uint8_in_float32_logits_out(architecture: str, channels: int) -> None:
    network = build_network(Hyperparameters(architecture=architecture), (channels, 32, 32))
    logits = network(images(channels=channels, side=32))
    assert logits.shape == (2,)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    dropouts = [module for module in network.body.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts] == [0.5]


@pytest.mark.parametrize("architecture", FAMILIES, ids=str)
def test_stages_cover_every_weight_in_order(architecture: str) -> None:
    network = build_network(Hyperparameters(architecture=architecture), (3, 64, 64))
    stages = ARCHITECTURES[architecture].stages(Hyperparameters(architecture=architecture))
    prefixes = [prefix for group in stages.values() for prefix in group]
    places = []
    for name, _ in network.body.named_parameters():
        fits = [place for place, prefix in enumerate(prefixes) if name.startswith(f"{prefix}.")]
        assert len(fits) == 1, name
        places.append(fits[0])
    assert places == sorted(places)


@pytest.mark.parametrize("resolution", [48, 32])
@pytest.mark.parametrize("architecture", ["plain_cnn", "resnet18", "stacked_cnn"])
def test_images_are_reduced_to_the_resolution_wherever_they_come_from(architecture: str, resolution: int) -> None:
    small = Hyperparameters(architecture=architecture)
    network = build_network(small.model_copy(update={"resolution": resolution}), (3, 64, 64)).eval()
    plain = build_network(small, (3, resolution, resolution)).eval()
    plain.load_state_dict(network.state_dict())
    given = images()
    before = given.clone()
    sized = reduced(given, resolution)
    kept = sized.clone()
    with torch.inference_mode():
        assert torch.equal(network(given), network(sized))
        assert torch.equal(network(sized), plain(sized))
    assert torch.equal(given, before)
    assert torch.equal(sized, kept)


def test_a_resolution_above_the_images_is_refused() -> None:
    message = r"resolution: must be at most the 64 px that the images were prepared at, got 65; lower it, or prepare"
    with pytest.raises(ConfigError, match=message):
        build_network(Hyperparameters(resolution=65), (3, 64, 64))
    assert build_network(Hyperparameters(resolution=64), (3, 64, 64)).side == 64


def test_unfreeze_from_layer4() -> None:
    network = build_network(Hyperparameters(architecture="resnet18", unfreeze_from="layer4"), (3, 64, 64))
    assert {name.split(".")[1] for name in trainable(network)} == {"layer4", "fc"}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(images(4)).sum().backward()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("body.layer4.") for name in moved), "frozen batch normalization must not move"
    assert not network.body.get_submodule("bn1").training
    assert network.body.get_submodule("layer4.0.bn1").training


def test_unfreeze_head_of_a_plain_cnn() -> None:
    network = build_network(Hyperparameters(unfreeze_from="head"), (3, 64, 64))
    assert {name.split(".")[1] for name in trainable(network)} == {"head"}


def test_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"stages all, stem, layer1.*got 'layer5'.*did you mean 'layer4'"):
        build_network(Hyperparameters(architecture="resnet18", unfreeze_from="layer5"), (3, 64, 64))


def test_plain_cnn_follows_its_parameters() -> None:
    network = build_network(Hyperparameters(blocks=3, filters=8, dense=0, dropout=0.2), (2, 128, 128))
    widths = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [8, 8, 16, 32]
    assert [module.in_features for module in network.modules() if isinstance(module, nn.Linear)] == [64]


def test_too_many_blocks_for_the_image() -> None:
    with pytest.raises(ConfigError, match="blocks: each block halves the image, 6 are too many for 32 px"):
        build_network(Hyperparameters(blocks=6), (3, 32, 32))


def test_pixels_are_normalized_inside() -> None:
    network = build_network(Hyperparameters(architecture="resnet18"), (3, 32, 32))
    seen: list[torch.Tensor] = []
    network.body.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network.eval()(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_from_a_file_but_not_the_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = build_network(Hyperparameters(architecture="resnet18"), (3, 64, 64))
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    torch.manual_seed(2)
    network = build_network(Hyperparameters(architecture="resnet18", weights=str(path)), (3, 64, 64))
    assert torch.equal(
        network.body.get_parameter("layer4.0.conv1.weight"), source.body.get_parameter("layer4.0.conv1.weight")
    )
    assert not torch.equal(network.body.get_parameter("fc.1.weight"), source.body.get_parameter("fc.1.weight"))


def test_older_files_that_count_no_batches_fit(tmp_path: Path) -> None:
    """torchvision's first ResNet and DenseNet files were written before batch normalization counted."""
    state = build_network(Hyperparameters(architecture="resnet18"), (3, 64, 64)).body.state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in state.items() if "num_batches" not in name}, path)
    body = build_network(Hyperparameters(architecture="resnet18", weights=str(path)), (3, 64, 64)).body
    assert torch.equal(body.get_parameter("layer4.0.conv1.weight"), state["layer4.0.conv1.weight"])


def test_weights_for_other_channels_keep_the_response_to_gray(tmp_path: Path) -> None:
    source = build_network(Hyperparameters(architecture="resnet18"), (3, 64, 64)).body
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    one = build_network(Hyperparameters(architecture="resnet18", weights=str(path)), (1, 64, 64)).body
    gray = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(one.get_submodule("conv1")(gray), source.get_submodule("conv1")(gray.repeat(1, 3, 1, 1)))


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(
        ConfigError, match=r"conv1.weight of resnet18 must have shape \(64, 3, 7, 7\), got shape \(64, 3, 3, 3\)"
    ):
        build_network(Hyperparameters(architecture="resnet18", weights=str(path)), (3, 64, 64))
    save_file({"conv1.weight": torch.zeros(64)}, path)
    with pytest.raises(ConfigError, match=r"conv1.weight of resnet18 must have shape .* got shape \(64,\)"):
        build_network(Hyperparameters(architecture="resnet18", weights=str(path)), (3, 64, 64))
    path.write_bytes(b"not tensors")
    with pytest.raises(IntegrityError, match="must be a safetensors file"):
        build_network(Hyperparameters(architecture="resnet18", weights=str(path)), (3, 64, 64))
    with pytest.raises(ConfigError, match="one of none, imagenet or a safetensors file"):
        build_network(Hyperparameters(architecture="resnet18", weights=str(tmp_path / "absent")), (3, 64, 64))
    with pytest.raises(ConfigError, match="families of torchvision and timm only"):
        build_network(Hyperparameters(weights="imagenet"), (3, 64, 64))


def test_imagenet_offline_says_where_the_file_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/hub/checkpoints/resnet18-\w+\.pth.*or use weights: none"):
        build_network(Hyperparameters(architecture="resnet18", weights="imagenet"), (3, 64, 64))


def test_imagenet_files_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own state, under the names of its files, loads and is kept."""
    import torchvision

    state = torchvision.models.densenet121().state_dict()
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for name, value in state.items()}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: old)
    network = build_network(Hyperparameters(architecture="densenet121", weights="imagenet"), (3, 64, 64))
    name = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(network.body.get_parameter(name), state[name])


def test_a_few_bright_pixels_reach_the_logit() -> None:
    torch.manual_seed(0)
    network = build_network(Hyperparameters(), (3, 128, 128)).eval()
    dark = torch.full((1, 3, 128, 128), 60, dtype=torch.uint8)
    bright = dark.clone()
    bright[..., 60:64, 60:64] = 255
    assert (network(bright) - network(dark)).abs().item() > 1e-3
