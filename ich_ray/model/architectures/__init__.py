"""Architectures by name. One from outside: `ARCHITECTURES.register("its_name", ItsClass())`.

One of this package has a file here, and its name in the table below; those of timm are found by name as `timm/NAME`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.model.architectures.base import Architecture
from ich_ray.registry import Registry

if TYPE_CHECKING:
    from ich_ray.model.fields import NetworkFields

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of"]

_TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "densenet121", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small",
)  # fmt: skip

ARCHITECTURES: Registry[Architecture] = Registry(
    "architectures",
    {
        "plain_cnn": f"{__name__}.plain_cnn:PLAIN_CNN",
        **{name: f"{__name__}.torchvision_models:{name.upper()}" for name in _TORCHVISION},
    },
    home=__name__,
    families={"timm": f"{__name__}.timm_models:TimmModel"},
)


def architecture_of(parameters: NetworkFields) -> Architecture:
    """The architecture that a draw names."""
    return ARCHITECTURES[parameters.architecture]
