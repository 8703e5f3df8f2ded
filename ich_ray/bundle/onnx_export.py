"""Export a bundle as ONNX: images in, logit and probability out, checked against the bundle.

Knows bundles and ONNX; needs the `onnx` extra, which nothing else does. The card travels in the file's metadata, so
that thresholds and limits stay with the model.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.sequence_onnx import INPUTS, OUTPUTS, bundle_outputs, example_series, exported_sequence
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.model.resampling import reduced
from ich_ray.storage import Location, check_file, locate, write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.bundle.logit_scaling import LogitScaling
    from ich_ray.bundle.series_model import SeriesModel

__all__ = ["CARD_KEY", "CHANNELS_KEY", "export_onnx", "onnx_label_outputs", "onnx_outputs", "onnx_run"]

CARD_KEY, CHANNELS_KEY = "ich_ray_card", "ich_ray_channels"
# In float32 on both sides, but with other kernels: ConvNeXt's logits differ by 1e-6.
_TOLERANCE = 1e-4
_PROBES = 3
_OF_LABELS = ["label_logits", "label_probabilities"]
_OF_FEATURES = ["network_logits", "features"]


class _WithProbability(nn.Module):
    """The network followed by its scaling, so that nobody has to repeat it in another language.

    A probability is NaN where `LogitScaling` gives none: a sigmoid alone would make 0 or 1 of an infinity.
    """

    shifts: torch.Tensor
    temperatures: torch.Tensor
    biases: torch.Tensor

    def __init__(self, network: nn.Module, scalings: Sequence[LogitScaling], side: int = 0) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("shifts", torch.tensor([scaling.prior_shift for scaling in scalings]))
        self.register_buffer("temperatures", torch.tensor([scaling.temperature for scaling in scalings]))
        self.register_buffer("biases", torch.tensor([scaling.bias for scaling in scalings]))

    def forward(self, images: torch.Tensor, rectangles: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Logit and probability of `any`, `[n]`; where there are subtypes also of all labels, `[n, labels]`."""
        logits = self.network(images if rectangles is None else reduced(images, self.side, rectangles))
        by_label = logits if logits.ndim == 2 else logits.unsqueeze(1)
        scaled = (by_label + self.shifts) / self.temperatures + self.biases
        probabilities = torch.where(scaled.abs() < torch.inf, torch.sigmoid(scaled), torch.nan)
        of_any = by_label[:, -1], probabilities[:, -1]
        return of_any if len(self.shifts) == 1 else (*of_any, by_label, probabilities)


class _WithFeatures(nn.Module):
    """The network with what a sequence model is given, for the first of two graphs."""

    def __init__(self, seeing: nn.Module, side: int) -> None:
        super().__init__()
        self.seeing, self.side = seeing, side

    def forward(self, images: torch.Tensor, rectangles: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Own logits `[n, labels]` and features `[n, d]`."""
        logits, features = self.seeing(images if rectangles is None else reduced(images, self.side, rectangles))
        return logits if logits.ndim == 2 else logits.unsqueeze(1), features


def export_onnx(bundle: Location, out: Location) -> UPath:
    """Write a bundle as ONNX, for any number of slices.

    Its input is `images`, uint8 `[slices, channels, rows, columns]`, as prepared. The metadata `ich_ray_channels` say
    what each channel is, such as `brain below 1, brain, brain above 1`; for a neighbor that is not there, a network is
    given the slice itself. Of a bundle with `crop` or `scale` a second input is `rectangles`, float32 `[slices, 4]`:
    what is shown of each image, as x and y of the center and half of the width and height, from -1 to 1 over the image;
    the graph cuts it out. Outputs are `logit` and `probability` of `any`,
    float32 `[slices]`; of a bundle that answers subtypes also `label_logits` and `label_probabilities`, `[slices, 6]`,
    in the order of `ich_ray.vocabulary.LABELS`, `any` last. The graph holds the test-time augmentation of the bundle.

    A bundle with a sequence model becomes two graphs: OUT gives `network_logits` and `features` of slices, and no
    probability; OUT with `.sequence` before its suffix takes those of the slices of one series in their order, float32
    `[1, slices, labels]` and `[1, slices, d]`, and `places_mm` `[1, slices]`, see sequence_onnx.py. It gives
    `label_logits` and `label_probabilities` `[1, slices, labels]`, and `study_logits` `[1, labels]`. Of a transformer
    it holds for series of at most as many places as its metadata `ich_ray_longest_series` say.

    Before the file is written ONNX Runtime must give its logits and probabilities on random images, within 1e-4.

    Raises:
        ConfigError: no bundle, no file can be written there, or the `onnx` extra is not installed.
        IntegrityError: the bundle is damaged.
        IchRayError: ONNX Runtime disagrees with PyTorch, or an output of the bundle is not finite.
    """
    target = locate(out)
    check_file(target, "export-onnx")
    loaded = load_bundle(bundle)
    loaded.check_outputs()
    if loaded.series is not None:
        return _both_graphs(loaded, loaded.series, target)
    data = _exported(loaded)
    probe = np.random.default_rng(0).integers(0, 256, (_PROBES, *loaded.card.input_shape), np.uint8)
    shown = _rectangles(_PROBES) if loaded.card.parameters.shows_part else None
    expected = loaded.label_logits(probe, shown)
    _check(target, (expected, loaded.label_calibrated(expected)), onnx_label_outputs(data, probe, shown))
    write_bytes(target, data)
    return target


def _both_graphs(bundle: Bundle, series: SeriesModel, target: UPath) -> UPath:
    """Write the graph of the network and, beside it, that of the sequence model, after both are checked."""
    beside = target.with_name(f"{target.stem}.sequence{target.suffix}")
    check_file(beside, "export-onnx")
    data = _exported(bundle, _WithFeatures(series.seeing, bundle.network.side), _OF_FEATURES)
    probe = np.random.default_rng(0).integers(0, 256, (_PROBES, *bundle.card.input_shape), np.uint8)
    shown = _rectangles(_PROBES) if bundle.card.parameters.shows_part else None
    given = {"images": probe} if shown is None else {"images": probe, "rectangles": shown}
    _check(target, bundle.seen(probe, shown), onnx_run(data, _OF_FEATURES, given))
    second = exported_sequence(bundle, _metadata(bundle))
    for slices in (1, 5):
        series_given = example_series(bundle, slices)
        inputs = dict(zip(INPUTS, series_given, strict=True))
        _check(beside, bundle_outputs(bundle, *series_given), onnx_run(second, OUTPUTS, inputs))
    write_bytes(target, data)
    write_bytes(beside, second)
    return target


def _check(
    target: UPath, expected: Sequence[NDArray[np.floating[Any]]], found: Sequence[NDArray[np.floating[Any]]]
) -> None:
    gap = max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
    if not gap <= _TOLERANCE:
        raise IchRayError(
            f"{target}: ONNX Runtime must give the outputs of the bundle within {_TOLERANCE:g}, got a difference of "
            f"{gap:.2g}; nothing was written, use the bundle itself"
        )


def _rectangles(count: int) -> NDArray[np.float32]:
    """Some that differ, of which one reaches beyond its image."""
    shown = [[0.1 * place, -0.1, 1.1 - 0.2 * place, 1.1 - 0.2 * place] for place in range(count)]
    return np.array(shown, np.float32)


def _metadata(bundle: Bundle) -> dict[str, str]:
    return {CARD_KEY: bundle.card.model_dump_json(), CHANNELS_KEY: ", ".join(bundle.card.channels)}


def _exported(bundle: Bundle, module: nn.Module | None = None, outputs: Sequence[str] = ()) -> bytes:
    try:
        import onnxscript  # noqa: F401  (torch.onnx imports it late, and fails with another error)
    except ImportError:
        raise _extra_missing("onnxscript") from None
    bundle.model.cpu()
    module = (module or _WithProbability(bundle.model, bundle.card.scalings, bundle.network.side)).eval()
    examples = {"images": torch.zeros((2, *bundle.card.input_shape), dtype=torch.uint8)}
    if bundle.card.parameters.shows_part:
        examples["rectangles"] = torch.from_numpy(_rectangles(2))
    slices = torch.export.Dim("slices")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about PyTorch's own future
        program = torch.onnx.export(
            module,
            (*examples.values(),),
            dynamo=True,
            verbose=False,
            input_names=[*examples],
            output_names=[*(outputs or ["logit", "probability", *_OF_LABELS * (len(bundle.card.scalings) > 1)])],
            dynamic_shapes={name: {0: slices} for name in examples},
        )
    if program is None:
        raise IchRayError("onnx: PyTorch must return the exported program, got none; use the bundle itself")
    bundle.model.to(bundle.device)
    program.model.metadata_props.update(_metadata(bundle))
    data: bytes = program.model_proto.SerializeToString()
    return data


def onnx_outputs(
    model: bytes, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities of `any`, float32 `[n]` each, that ONNX Runtime gives for images.

    Raises:
        ConfigError: ONNX Runtime is not installed.
    """
    logits, probabilities = onnx_label_outputs(model, images, rectangles)
    return logits[:, -1], probabilities[:, -1]


def onnx_label_outputs(
    model: bytes, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and probabilities of all labels, float32 `[n, labels]` each; `any` is the last.

    Raises:
        ConfigError: ONNX Runtime is not installed.
    """
    session = _session(model)
    names = [output.name for output in session.get_outputs()]
    given = {"images": images} if rectangles is None else {"images": images, "rectangles": rectangles}
    several = {*_OF_LABELS} <= {*names}
    found = session.run([*_OF_LABELS] if several else ["logit", "probability"], given)
    logits, probabilities = (np.asarray(values, np.float32).reshape(len(images), -1) for values in found)
    return logits, probabilities


def onnx_run(
    model: bytes, outputs: Sequence[str], given: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.floating[Any]]]:
    """Outputs by name that ONNX Runtime gives.

    Raises:
        ConfigError: ONNX Runtime is not installed.
    """
    return [np.asarray(one) for one in _session(model).run([*outputs], dict(given))]


def _session(model: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise _extra_missing("onnxruntime") from None
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def _extra_missing(package: str) -> ConfigError:
    return ConfigError(f"export-onnx: {package} must be installed, got none; run `pip install 'ich_ray[onnx]'`")
