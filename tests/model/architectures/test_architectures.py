from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ich_ray
from ich_ray.errors import ConfigError
from ich_ray.model.architectures import ARCHITECTURES, Architecture
from ich_ray.model.fields import NetworkFields
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network

PACKAGE = Path(ich_ray.__file__).parent
# The published systems and ours are described there; the group of the network names its default.
MAY_NAME_ONE = ("model/architectures/", "published/", "model/fields.py")


def test_no_other_file_knows_an_architecture_by_name() -> None:
    names = re.compile("|".join(ARCHITECTURES.names()))
    found = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if names.search(path.read_text())]
    assert [name for name in found if not name.startswith(MAY_NAME_ONE)] == []
    assert "model/architectures/__init__.py" in found


def test_fields_and_stages_need_no_pytorch() -> None:
    code = (
        "import sys; from ich_ray.model.architectures import ARCHITECTURES as a; "
        "from ich_ray.model.hyperparameters import Hyperparameters as h; "
        "[a[n].stages(h(architecture=n)) for n in a.names()]; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("plain_cnn", "blocks.block2"),
        ("stacked_cnn", "blocks.block2"),
        ("resnet18", "layer4"),
        ("densenet121", "features.norm5"),
        ("efficientnet_b0", "features.8"),
        ("convnext_tiny", "features.7"),
        ("mobilenet_v3_small", "features.12"),
    ],
)
def test_heat_maps_look_at_the_last_stage(architecture: str, layer: str) -> None:
    parameters = Hyperparameters(architecture=architecture)
    assert ARCHITECTURES[architecture].heat_layer(parameters) == layer
    with torch.device("meta"):
        assert build_network(parameters, (3, 64, 64)).body.get_submodule(layer)


class Wide(Architecture):
    """One convolution over 40 pixels, and no rule that says so."""

    def build(self, parameters: NetworkFields, input_shape: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(input_shape[0], 1, 40), nn.Flatten(), nn.Linear((input_shape[1] - 39) ** 2, 1))

    def stages(self, parameters: NetworkFields) -> dict[str, tuple[str, ...]]:
        return {"convolution": ("0",), "head": ("2",)}


def test_an_architecture_without_a_rule_is_tried() -> None:
    Wide().check(Hyperparameters(weights="absent.safetensors"), (3, 41, 41))
    with pytest.raises(ConfigError) as caught:
        Wide().check(Hyperparameters(), (3, 32, 32))
    assert str(caught.value).startswith("architecture: images must fit plain_cnn, got 3x32x32: ")
    assert str(caught.value).endswith("; leave it out or prepare other images")


def test_what_stands_between_a_densenet_and_its_head_is_no_module() -> None:
    divisible = {name for name in ARCHITECTURES.names() if ARCHITECTURES[name].is_divisible_at("head")}
    assert divisible == {
        "resnet18", "resnet34", "resnet50", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small",
    }  # fmt: skip
    assert ARCHITECTURES["densenet121"].is_divisible_at("denseblock4")


@pytest.mark.parametrize(
    ("architecture", "side", "message"),
    [
        ("plain_cnn", 3, "blocks: each block halves the image, 2 are too many for 3 px (reduced 1 times first)"),
        ("stacked_cnn", 3, "convolutions: a pixel must be left after each block, got none after 3/2, block 2"),
        ("densenet121", 16, "architecture: images must be large enough for densenet121, got 16 px"),
    ],
)
def test_an_image_that_is_too_small_is_refused_by_arithmetic(architecture: str, side: int, message: str) -> None:
    parameters = Hyperparameters(architecture=architecture)
    ARCHITECTURES[architecture].check(parameters, (3, 64, 64))
    with pytest.raises(ConfigError) as caught:
        ARCHITECTURES[architecture].check(parameters, (3, side, side))
    assert str(caught.value).startswith(message)
