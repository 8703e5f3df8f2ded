"""Export a bundle as ONNX: images in, logit and probability out, checked against the bundle.

Knows bundles and ONNX; needs the `onnx` extra, which nothing else does. The card travels in the file's metadata, so
that thresholds and limits stay with the model.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.storage import Location, check_file, locate, write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.bundle.logit_scaling import LogitScaling

__all__ = ["CARD_KEY", "export_onnx", "onnx_outputs"]

CARD_KEY = "ich_ray_card"
# In float32 on both sides, but with other kernels: ConvNeXt's logits differ by 1e-6.
_TOLERANCE = 1e-4
_PROBES = 3


class _WithProbability(nn.Module):
    """The network followed by its scaling, so that nobody has to repeat it in another language.

    A probability is NaN where `LogitScaling` gives none: a sigmoid alone would make 0 or 1 of an infinity.
    """

    def __init__(self, network: nn.Module, scaling: LogitScaling) -> None:
        super().__init__()
        self.network, self.scaling = network, scaling

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.network(images)
        scaled = (logits + self.scaling.prior_shift) / self.scaling.temperature + self.scaling.bias
        return logits, torch.where(scaled.abs() < torch.inf, torch.sigmoid(scaled), torch.nan)


def export_onnx(bundle: Location, out: Location) -> UPath:
    """Write a bundle as ONNX, for any number of slices.

    Its input is `images`, uint8 `[slices, channels, rows, columns]`. Outputs are `logit` and `probability`, float32
    `[slices]`. Before the file is written ONNX Runtime must give the logits and probabilities of the bundle on random
    images, within 1e-4.

    Raises:
        ConfigError: no bundle, no file can be written there, or the `onnx` extra is not installed.
        IntegrityError: the bundle is damaged.
        IchRayError: ONNX Runtime disagrees with PyTorch, or an output of the bundle is not finite.
    """
    target = locate(out)
    check_file(target, "export-onnx")
    loaded = load_bundle(bundle)
    loaded.check_outputs()
    data = _exported(loaded)
    probe = np.random.default_rng(0).integers(0, 256, (_PROBES, *loaded.card.input_shape), np.uint8)
    logits, probabilities = onnx_outputs(data, probe)
    expected = loaded.logits(probe)
    gap = max(np.abs(logits - expected).max(), np.abs(probabilities - loaded.calibrated(expected)).max())
    if not gap <= _TOLERANCE:
        raise IchRayError(
            f"{target}: ONNX Runtime must give the outputs of the bundle within {_TOLERANCE:g}, got a difference of "
            f"{gap:.2g}; nothing was written, use the bundle itself"
        )
    write_bytes(target, data)
    return target


def _exported(bundle: Bundle) -> bytes:
    try:
        import onnxscript  # noqa: F401  (torch.onnx imports it late, and fails with another error)
    except ImportError:
        raise _extra_missing("onnxscript") from None
    module = _WithProbability(bundle.network.cpu(), bundle.card.scaling).eval()
    example = torch.zeros((2, *bundle.card.input_shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about PyTorch's own future
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logit", "probability"],
            dynamic_shapes=({0: torch.export.Dim("slices")},),
        )
    if program is None:
        raise IchRayError("onnx: PyTorch must return the exported program, got none; use the bundle itself")
    bundle.network.to(bundle.device)
    program.model.metadata_props[CARD_KEY] = bundle.card.model_dump_json()
    data: bytes = program.model_proto.SerializeToString()
    return data


def onnx_outputs(model: bytes, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities, float32 `[n]` each, that ONNX Runtime gives for images.

    Raises:
        ConfigError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise _extra_missing("onnxruntime") from None
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logit", "probability"], {"images": images})
    return np.asarray(logits, np.float32), np.asarray(probabilities, np.float32)


def _extra_missing(package: str) -> ConfigError:
    return ConfigError(f"export-onnx: {package} must be installed, got none; run `pip install 'ich_ray[onnx]'`")
