"""A trained network with its card: save, load, verify, predict. Needs neither Ray nor the search it came from."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from safetensors.torch import load, save

from ich_ray.errors import ConfigError, IntegrityError, Rejection
from ich_ray.final.card import Card, OperatingPoint, WeightsNote, read_card, write_card
from ich_ray.model.networks import Network, build_network
from ich_ray.model.training import EVALUATION_BATCH, batch_logits, predict_logits
from ich_ray.storage import Location, locate, sha256, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.dataset import SliceSet

__all__ = ["OPERATING_POINT", "Bundle", "Prediction", "load_bundle", "predict"]

OPERATING_POINT = "f2"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Prediction:
    """One input file; a rejected one has a reason and no probability."""

    file: str
    slice_id: str = ""
    probability: float | None = None
    decision: Literal["positive", "negative", ""] = ""
    operating_point: str = ""
    threshold: float | None = None
    reason: str = ""


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

    def predict(self, paths: Iterable[Location]) -> list[Prediction]:
        """One row per file, in order; folders are searched for files, hidden ones left out.

        Raises:
            ConfigError: a path does not exist, or the bundle is not calibrated.
        """
        point = self.operating_point()
        rows: list[Prediction] = []
        waiting: list[Prediction] = []
        images: list[NDArray[np.uint8]] = []
        for row, image in self._read(_files(paths)):
            waiting.append(row)
            images += [] if image is None else [image]
            if len(images) == EVALUATION_BATCH:
                rows += self._decide(waiting, images, point)
                waiting, images = [], []
        return rows + self._decide(waiting, images, point)

    def _read(self, files: Iterable[UPath]) -> Iterator[tuple[Prediction, NDArray[np.uint8] | None]]:
        from ich_ray.ct.dicom import read_slice  # pydicom is not needed to load a bundle
        from ich_ray.ct.windowing import window_slice

        for file in files:
            try:
                found = read_slice(file)
                image = window_slice(found, self.card.windows, self.card.size)
            except Rejection as rejection:
                yield Prediction(str(file), reason=rejection.reason), None
            else:
                yield Prediction(str(file), slice_id=found.header.slice_id), image

    def _decide(
        self, rows: list[Prediction], images: list[NDArray[np.uint8]], point: OperatingPoint
    ) -> list[Prediction]:
        if not images:
            return rows
        probabilities = iter(self.probabilities(np.stack(images)).tolist())
        return [row if row.reason else _decided(row, next(probabilities), point.threshold) for row in rows]


def _decided(row: Prediction, probability: float, threshold: float) -> Prediction:
    return Prediction(
        file=row.file,
        slice_id=row.slice_id,
        probability=probability,
        decision="positive" if probability >= threshold else "negative",
        operating_point=OPERATING_POINT,
        threshold=threshold,
    )


def _files(paths: Iterable[Location]) -> list[UPath]:
    files: list[UPath] = []
    for path in map(locate, paths):
        if path.is_dir():
            below = (found for found in path.rglob("*") if not found.name.startswith(".") and not found.is_dir())
            files += sorted(below, key=str)
        elif path.exists():
            files.append(path)
        else:
            raise ConfigError(f"{path}: a file or folder of slices must be there, got none; check the path")
    return files


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
    network.load_state_dict(load(data))
    return Bundle(network, card)


def predict(bundle: Location, paths: Iterable[Location], out: Location) -> tuple[list[Prediction], int]:
    """Predict files and folders into a CSV with one row per input, written whole or not at all.

    Returns:
        The rows, and how many of them were rejected.

    Raises:
        ConfigError: a path or the bundle does not exist, nothing was given, or the bundle is not calibrated.
        IntegrityError: the bundle is damaged.
    """
    rows = load_bundle(bundle).predict(paths)
    if not rows:
        raise ConfigError("predict: at least one file must be given, got none; check that the folder is not empty")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(asdict(rows[0])))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_bytes(locate(out), text.getvalue().encode())
    return rows, sum(bool(row.reason) for row in rows)
