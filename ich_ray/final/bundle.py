"""A trained network with its card: save, load, verify, predict. Needs neither Ray nor the search it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.final.card import Card, OperatingPoint, read_card, write_card
from ich_ray.model.networks import Network, build_network
from ich_ray.results import WeightsNote
from ich_ray.storage import Location, locate, sha256, write_bytes
from ich_ray.training.inference import EVALUATION_BATCH, batch_logits, predict_logits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from ich_ray.data.dataset import SliceSet
    from ich_ray.final.prediction import Prediction

__all__ = ["OPERATING_POINT", "Bundle", "load_bundle"]

OPERATING_POINT = "f2"
WEIGHTS_FILE = "model.safetensors"


class Bundle:
    """A network ready to predict. Made by `load_bundle` or by `retrain`."""

    def __init__(self, network: Network, card: Card) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device).eval()
        self.card = card

    def __repr__(self) -> str:
        return f"Bundle({self.card.architecture}, {'calibrated' if self.card.operating_points else 'not calibrated'})"

    def save(self, path: Location) -> None:
        """Write the weights, then the card with their hash: without the card there is no bundle."""
        folder = locate(path)
        tensors = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        data = save(tensors)
        self.card = self.card.model_copy(update={"weights": WeightsNote(file=WEIGHTS_FILE, sha256=sha256(data))})
        write_bytes(folder / WEIGHTS_FILE, data)
        write_card(folder, self.card)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw logits float32 `[n]` of images uint8 `[n, channels, rows, columns]`."""
        if images.dtype != np.uint8 or images.shape[1:] != self.card.image_shape:
            raise ConfigError(
                f"images: uint8 [n, {', '.join(map(str, self.card.image_shape))}] must be given, got {images.dtype} "
                f"{list(images.shape)}"
            )
        starts = range(0, len(images), EVALUATION_BATCH)
        return batch_logits(
            self.network,
            (torch.from_numpy(images[start : start + EVALUATION_BATCH]).to(self.device) for start in starts),
        )

    def slice_logits(self, slices: SliceSet) -> NDArray[np.float32]:
        """Raw logits of slices of a prepared dataset, in their order."""
        return predict_logits(self.network, slices, self.device)

    def calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of raw logits."""
        return self.card.scaling(logits)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Calibrated probabilities float64 `[n]` of images uint8 `[n, channels, rows, columns]`."""
        return self.calibrated(self.logits(images))

    def operating_point(self, name: str = OPERATING_POINT) -> OperatingPoint:
        """The threshold of that name.

        Raises:
            ConfigError: the bundle is not calibrated, so that no threshold means anything.
        """
        point = self.card.operating_points.get(name)
        if point is None:
            raise ConfigError(
                f"bundle: the operating point {name!r} comes from calibration, got "
                f"{', '.join(self.card.operating_points) or 'none'}; run `ich-ray calibrate` on its search first"
            )
        return point

    def predict(self, paths: Iterable[Location], point: str = OPERATING_POINT) -> list[Prediction]:
        """One row per file, in order; folders are searched for files, hidden ones left out.

        For more rows than should lie in memory see `archive.predict`.

        Raises:
            ConfigError: a path does not exist, there is no file, or the bundle has no such operating point.
        """
        from ich_ray.final.prediction import Predictor, list_inputs

        return [row for rows in Predictor(self, point).stream(list_inputs(paths)) for row in rows]


def load_bundle(path: Location) -> Bundle:
    """Load a bundle and check that the weights are those that its card describes.

    Raises:
        ConfigError: there is no bundle.
        IntegrityError: the card or the weights are not what was saved.
    """
    folder = locate(path)
    card = read_card(folder)
    file = folder / card.weights.file
    if not file.exists():
        raise IntegrityError(f"{file}: the weights of the card must be there, got none; restore the file or retrain")
    data = file.read_bytes()
    if sha256(data) != card.weights.sha256:
        raise IntegrityError(
            f"{file}: SHA-256 must be {card.weights.sha256[:12]}… as in card.json, got {sha256(data)[:12]}…; "
            "restore the file or retrain"
        )
    network = build_network(card.parameters.model_copy(update={"weights": "none"}), card.image_shape)
    try:
        network.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise IntegrityError(
            f"{file}: must be the weights of its card, got {line}; restore the file or retrain"
        ) from None
    return Bundle(network, card)
