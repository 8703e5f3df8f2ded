"""Where the network looked: Grad-CAM over the windowed slice, as pictures beside it.

Knows bundles and images. Needs the `heatmaps` extra (captum). A heat map shows which places raised the logit, at the
coarse grid of the last convolutions; it is no outline of a bleeding and no evidence of one.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ich_ray.bundle.heatmap_overlay import overlay, strength
from ich_ray.ct.windowing import brain_channel
from ich_ray.errors import ConfigError
from ich_ray.model.architectures import architecture_of
from ich_ray.model.input_shape import first_own_channel
from ich_ray.model.resampling import resampled
from ich_ray.storage import is_local, write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.model.networks import Network

__all__ = ["HeatMaps", "check_captum", "grad_cam"]

_PIXELS = 256  # of a side at least, so that it can be looked at


class HeatMaps:
    """Writes a picture for each slice into a folder, named after its file: both are for their owner only."""

    def __init__(self, bundle: Bundle, folder: UPath) -> None:
        check_captum()  # before hours of decoding
        for parameters in bundle.card.each_parameters:
            architecture_of(parameters).heat_layer(parameters)
        self._bundle, self._folder = bundle, folder
        windows, parameters = bundle.card.windows, bundle.card.parameters
        self._channel = first_own_channel(parameters, len(windows)) + brain_channel(windows)  # of the slice itself

    def write(
        self,
        files: Sequence[str],
        images: NDArray[np.uint8],
        probabilities: NDArray[np.float64],
        threshold: float,
        rectangles: NDArray[np.float32] | None = None,
    ) -> list[str]:
        """Write a picture of each image: the slice, and the slice under its heat map.

        Images and rectangles are those of `Bundle.label_logits`. Below the operating point a map fades with its
        probability.

        Returns:
            The paths of the pictures; empty where the heat is not finite, as it then shows nothing.
        """
        if is_local(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = []
        heats = grad_cam(self._bundle, images, rectangles)
        for file, image, heat, probability in zip(files, images, heats, probabilities.tolist(), strict=True):
            if not np.isfinite(heat).all():
                written.append("")
                continue
            digest = hashlib.sha256(file.encode()).hexdigest()[:8]  # files of two folders may share a name
            path = self._folder / f"{PurePosixPath(file).stem}-{digest}.png"
            picture = _png(image[self._channel], heat * np.float32(strength(probability, threshold)))
            write_bytes(path, picture, private=True)
            written.append(str(path))
        return written


def grad_cam(
    bundle: Bundle, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Heat `[n, rows, columns]` from 0 to 1 of images uint8 `[n, channels, rows, columns]`.

    Selvaraju et al., "Grad-CAM" (2017), of the logit of `any` at the last convolutional stage, scaled to a
    maximum of 1 in each slice; all 0 where nothing raises the logit. Of the image as it is: views of test-time
    augmentation are not averaged into it; maps of the networks of an ensemble are. Where rectangles of the images are
    shown, it lies where they do.

    Raises:
        ConfigError: captum is not installed, or the network ends in no map of places.
    """
    networks = zip(bundle.networks, bundle.card.each_parameters, strict=True)
    heats = [_heat(bundle, network, parameters, images, rectangles) for network, parameters in networks]
    return np.asarray(_scaled(torch.stack(heats).mean(0)).cpu().numpy(), np.float32)


def _heat(
    bundle: Bundle,
    network: Network,
    parameters: Hyperparameters,
    images: NDArray[np.uint8],
    rectangles: NDArray[np.float32] | None,
) -> torch.Tensor:
    """Heat of one of the networks of a bundle."""
    attr, card = check_captum(), bundle.card
    layer = network.body.get_submodule(architecture_of(parameters).heat_layer(parameters))
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    network.requires_grad_(True)  # frozen stages would give no gradient
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bytes have no gradient: it is that of the layer that counts
            batch = bundle.cut(torch.from_numpy(images).to(bundle.device), rectangles)
            several = len(card.parameters.predicted_labels) > 1
            target = len(card.parameters.predicted_labels) - 1 if several else None
            raw = attr.LayerGradCam(network, layer).attribute(batch, target, relu_attributions=True)
        heat = attr.LayerAttribution.interpolate(raw, batch.shape[2:], "bilinear").detach()
        heat = (heat if rectangles is None else _laid_back(heat, card.size, rectangles))[:, 0]
    finally:
        network.requires_grad_(False)
        for weight in trainable:
            weight.requires_grad_(True)
    return _scaled(heat)


def _scaled(heat: torch.Tensor) -> torch.Tensor:
    """To a maximum of 1 in each slice; all 0 where nothing is above."""
    peak = heat.amax((1, 2), keepdim=True)
    return heat / peak.clamp(min=1e-12)


def _laid_back(heat: torch.Tensor, side: int, rectangles: NDArray[np.float32]) -> torch.Tensor:
    """Heat of rectangles of images `[n, 1, rows, columns]` over the whole images, 0 where they do not reach."""
    x, y, half_width, half_height = torch.from_numpy(rectangles).to(heat).unbind(1)
    return resampled(
        heat,
        side,
        torch.stack(
            [
                torch.stack([1 / half_width, torch.zeros_like(x), -x / half_width], 1),
                torch.stack([torch.zeros_like(y), 1 / half_height, -y / half_height], 1),
            ],
            1,
        ),
    )


def _png(grey: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    beside = np.concatenate([np.repeat(grey[..., None], 3, 2), overlay(grey, heat)], axis=1)
    picture = Image.fromarray(beside)
    times = -(-_PIXELS // grey.shape[0])
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def check_captum() -> Any:
    """The part of captum that is needed.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from captum import attr
    except ImportError:
        raise ConfigError(
            "--heatmaps: captum must be installed, got none; run `pip install 'ich_ray[heatmaps]'`"
        ) from None
    return attr
