"""A trained network with its card: save, load, verify, predict.

Needs neither Ray nor the search it came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ich_ray.bundle.answering_series import answering_series
from ich_ray.bundle.card import with_sequence_note
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.ensemble import Ensemble
from ich_ray.bundle.sequence_file import read_sequence, write_sequence
from ich_ray.bundle.series_model import SeriesModel
from ich_ray.bundle.study_logits import study_logits
from ich_ray.bundle.tta import with_tta
from ich_ray.bundle.weights_file import (
    REMEDY,
    damaged_weights,
    read_weights_file,
    remove_other_weights,
    write_weights_file,
)
from ich_ray.data.shown_rectangles import WHOLE
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.model.outline import filled, outline
from ich_ray.model.resampling import reduced
from ich_ray.model.tensors import layout_of
from ich_ray.storage import Location, locate
from ich_ray.training.inference import EVALUATION_BATCH, batch_logits, predict_logits
from ich_ray.training.network_inputs import input_rectangles, place_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.operating_point import OperatingPoint
    from ich_ray.bundle.prediction import Prediction
    from ich_ray.bundle.sequence_note import SequenceNote
    from ich_ray.bundle.sequence_scorer import SequenceAnswers
    from ich_ray.bundle.study_calibration import StudyScore
    from ich_ray.bundle.study_logits import StudyLogits
    from ich_ray.data.dataset import SliceSet
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.model.networks import Network
    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.trial_records import WeightsNote

__all__ = ["OPERATING_POINT", "Bundle", "load_bundle"]

OPERATING_POINT = "f2"
WEIGHTS_FILE = "model.safetensors"
_IF_NOT_FINITE = "repeat it without an accelerator if there is one, calibrate again, or retrain"


class Bundle:
    """A network ready to predict. Made by `load_bundle` or by `retrain`.

    Attributes:
        network: the one that was trained, of an ensemble the first.
        networks: that one and those of `card.members`.
        model: what gives their logits: the network, or the mean over those of an ensemble, and its mean over the views
            of `card.tta`.
        sequence: the sequence model, if there is one; all logits and probabilities are then blended with its own.
        series: both together; None without.
    """

    def __init__(
        self,
        network: Network,
        card: Card,
        sequence: SequenceNetwork | None = None,
        *,
        others: Sequence[Network] = (),
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.networks = tuple(one.to(self.device).eval() for one in (network, *others))
        self.network = self.networks[0]
        self.model = with_tta(self._together(card), card.tta, card.parameters, card.image_shape[0])
        self.card, self.sequence, self.series = card, sequence, None
        if (sequence is None) != (card.sequence is None):
            raise IchRayError(f"{card.name}: a sequence model must be given where the card has one, and only there")
        if sequence is not None and card.members:
            raise ConfigError(f"{card.name}: a sequence model stands on one network, got one on an ensemble")
        if sequence is not None and card.sequence is not None:
            self.series = SeriesModel(self.model, sequence, card, card.sequence, self.device)

    def _together(self, card: Card) -> nn.Module:
        if not card.members:
            return self.network
        first = (0.0,) * len(card.parameters.predicted_labels)
        return Ensemble(self.networks, [first, *(member.shifts for member in card.members)]).to(self.device).eval()

    def __repr__(self) -> str:
        return f"Bundle({self.card.architecture}, {'calibrated' if self.card.operating_points else 'not calibrated'})"

    def save(self, path: Location) -> None:
        """Write the weights, then the card with their hash: without the card there is no bundle.

        Another sequence model has another file, so that a bundle whose network stays can be read at any moment.

        Raises:
            IchRayError: a weight is not finite.
        """
        folder = locate(path)
        first, *others = [
            write_weights_file(folder, f"model-{number}.safetensors" if number else WEIGHTS_FILE, network)
            for number, network in enumerate(self.networks)
        ]
        pairs = zip(self.card.members, others, strict=True)
        members = tuple(member.model_copy(update={"weights": weights}) for member, weights in pairs)
        held: dict[str, Any] = {"weights": first, "members": members}
        if self.sequence is not None and self.card.sequence is not None:
            held["sequence"] = self.card.sequence.model_copy(update={"weights": write_sequence(folder, self.sequence)})
        self.card = self.card.model_copy(update=held)
        write_card(folder, self.card)
        remove_other_weights(folder, self.card)

    def logits(self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Raw logits of `any`, float32 `[n]`; see `label_logits`."""
        return self.label_logits(images, rectangles)[:, -1]

    def label_logits(
        self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Raw logits of all labels that it answers, float32 `[n, labels]`; `any` is the last.

        With a sequence model, each image is taken for a series of one slice.

        Args:
            images: uint8 `[n, channels, rows, columns]`, as prepared. For a network that sees neighbors the channels
                are those of the slices beside each other, from below to above, as model/input_shape.py says; where
                there is no neighbor, training had the slice itself in its place.
            rectangles: what is shown of each, float32 `[n, 4]`, see `data.shown_rectangles`; where the network sees a
                part of its images, and only there.

        Raises:
            ConfigError: they are not of this shape.
        """
        batches = self._batches(images, rectangles)
        if self.series is not None:
            return self.series.alone(batches).logits
        return self._by_label(batch_logits(self.model, batches))

    def seen(
        self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Own logits of the network `[n, labels]` and features `[n, d]`, of images as in `label_logits`.

        Raises:
            ConfigError: they are not of this shape, or there is no sequence model.
        """
        return self._with_series().seen(self._batches(images, rectangles))

    def of_series(
        self,
        own: NDArray[np.float32],
        features: NDArray[np.floating[Any]],
        series: NDArray[np.int64],
        places_mm: NDArray[np.float64],
    ) -> SequenceAnswers:
        """What the sequence model makes of slices of whole series, see `SequenceScorer`.

        Raises:
            ConfigError: there is none.
        """
        return self._with_series()(own, features, series, places_mm)

    def _with_series(self) -> SeriesModel:
        if self.series is None:
            raise ConfigError(f"{self.card.name}: a sequence model must be there, got none; run `ich-ray sequence`")
        return self.series

    def _batches(self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None) -> Iterator[torch.Tensor]:
        self._check(images, rectangles)
        starts = range(0, len(images), EVALUATION_BATCH)
        return (self._shown(images, rectangles, start) for start in starts)

    def _check(self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != self.card.input_shape:
            raise ConfigError(
                f"images: uint8 [n, {', '.join(map(str, self.card.input_shape))}] must be given, got {images.dtype} "
                f"{list(images.shape)}"
            )
        wanted = (len(images), 4) if self.card.parameters.shows_part else None
        if (found := None if rectangles is None else rectangles.shape) != wanted:
            raise ConfigError(
                f"rectangles: {list(wanted) if wanted else 'none'} must be given for a network with crop: "
                f"{self.card.parameters.crop} and scale: {self.card.parameters.scale}, got "
                f"{list(found) if found else 'none'}"
            )

    def _shown(self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None, start: int) -> torch.Tensor:
        """A batch of images on the device, cut where they are not shown whole."""
        batch = torch.from_numpy(images[start : start + EVALUATION_BATCH]).to(self.device)
        return self.cut(batch, None if rectangles is None else rectangles[start : start + EVALUATION_BATCH])

    def cut(self, images: torch.Tensor, rectangles: NDArray[np.float32] | None) -> torch.Tensor:
        """What is shown of images `[n, channels, rows, columns]`, float32, at the side that the network sees."""
        if rectangles is None:
            return images
        return reduced(images, self.network.side, torch.from_numpy(rectangles).to(images.device))

    def _by_label(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits.reshape(len(logits), len(self.card.parameters.predicted_labels))

    def inputs(self, slices: SliceSet) -> NDArray[np.uint8]:
        """Uncut images of slices of a dataset with their neighbors, uint8 `[n, *card.input_shape]`."""
        placed = place_inputs(self.card.parameters, slices, torch.device("cpu"), "host")
        return np.asarray(placed.take_uncut(np.arange(len(slices)))[0].numpy())

    def rectangles(self, slices: SliceSet) -> NDArray[np.float32] | None:
        """What is shown of the images of these slices, `[n, 4]`; None where they are shown whole."""
        return input_rectangles(self.card.parameters, slices)

    def slice_logits(self, slices: SliceSet) -> NDArray[np.float32]:
        """Raw logits of `any` of slices of a prepared dataset, in their order, float32 `[n]`.

        Raises:
            IchRayError: one is not finite.
        """
        return self.slice_label_logits(slices)[:, -1]

    def slice_label_logits(self, slices: SliceSet) -> NDArray[np.float32]:
        """Raw logits of all labels, float32 `[n, labels]`; `any` is the last.

        With a sequence model, of each slice in its whole series, and blended.

        Raises:
            IchRayError: one is not finite.
        """
        if self.series is None:
            return self.network_label_logits(slices)
        logits = self.series.slices(slices).logits
        self._check_finite(slices, logits, logits)
        return logits

    def network_label_logits(self, slices: SliceSet) -> NDArray[np.float32]:
        """The same of the network alone, as if there were no sequence model.

        Raises:
            IchRayError: one is not finite.
        """
        if self.series is None:
            logits = self._by_label(predict_logits(self.model, slices, self.card.parameters, self.device))
        else:
            logits = self.series.slices(slices).own
        self._check_finite(slices, logits, logits)
        return logits

    def study_label_logits(self, slices: SliceSet, logits: NDArray[np.float32] | None = None) -> StudyLogits:
        """Raw logits of studies: of the study head, or without one the highest of their slices.

        Args:
            slices: of whole studies.
            logits: of these slices, if they are there already; they count where there is no study head.

        Raises:
            IchRayError: one is not finite.
        """
        if self.series is not None:
            logits = self.series.slices(slices).series
        elif logits is None:
            logits = self.slice_label_logits(slices)
        self._check_finite(slices, logits, logits)
        score: StudyScore = "maximum" if self.series is None else "study head"
        return study_logits(slices, answering_series(slices, self.card.training_data), logits, score)

    def slice_probabilities(self, slices: SliceSet) -> NDArray[np.float64]:
        """Calibrated probabilities of `any` of slices of a prepared dataset, in their order, `[n]`.

        Raises:
            IchRayError: one is not finite.
        """
        return self.slice_label_probabilities(slices)[:, -1]

    def slice_label_probabilities(
        self, slices: SliceSet, logits: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """Calibrated probabilities of all labels, float64 `[n, labels]`; `any` is the last.

        `logits` are those of these slices, if they are at hand.

        Raises:
            IchRayError: one is not finite.
        """
        logits = self.slice_label_logits(slices) if logits is None else logits
        probabilities = self.label_calibrated(logits)
        self._check_finite(slices, logits, probabilities)
        return probabilities

    def _check_finite(self, slices: SliceSet, logits: NDArray[np.float32], values: NDArray[np.floating[Any]]) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            raise IchRayError(
                f"{self.card.name}: logits and probabilities must be finite, got {len(bad)} of {len(slices)} slices "
                f"where they are not, the first in row {slices.rows[bad[0]]} of slices.parquet (patient "
                f"{slices.patients[bad[0]]}, logit {logits[bad[0], -1]:g}); {_IF_NOT_FINITE}"
            )

    def check_outputs(self) -> None:
        """Refuse a bundle that gives no number for a black, a white and a random image.

        Raises:
            IchRayError: a logit or a probability is not finite.
        """
        images = np.random.default_rng(0).integers(0, 256, (3, *self.card.input_shape), np.uint8)
        images[0], images[1] = 0, 255
        whole = np.tile(np.array(WHOLE, np.float32), (3, 1)) if self.card.parameters.shows_part else None
        logits = self.label_logits(images, whole)
        if not np.isfinite(self.label_calibrated(logits)).all():
            raise IchRayError(
                f"{self.card.name}: logits and probabilities must be finite, got others for a black, a white and a "
                f"random image (logits {', '.join(f'{logit:g}' for logit in logits[:, -1])}); {_IF_NOT_FINITE}"
            )

    def calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of raw logits of `any`; NaN where there is none, see `LogitScaling`."""
        return self.card.scaling(logits)

    def label_calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of raw logits of all labels, `[n, labels]` both; NaN where there is none."""
        return np.stack([scaling(column) for scaling, column in zip(self.card.scalings, logits.T, strict=True)], 1)

    def probabilities(
        self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """Calibrated probabilities of `any`, float64 `[n]`, of images as `label_logits` takes them.

        NaN where a logit is not finite.
        """
        return self.calibrated(self.logits(images, rectangles))

    def label_probabilities(
        self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """Calibrated probabilities of all labels, float64 `[n, labels]`; `any` is the last."""
        return self.label_calibrated(self.label_logits(images, rectangles))

    def without_tta(self) -> Bundle:
        """The same weights and calibration, asked for the image as it is alone."""
        card = self.card.model_copy(update={"tta": ()})
        return Bundle(self.network, card, self.sequence, others=self.networks[1:])

    def without_members(self) -> Bundle:
        """The first network of an ensemble alone, as a retraining without one would have given it."""
        return Bundle(self.network, self.card.model_copy(update={"members": ()}))

    def with_sequence(self, sequence: SequenceNetwork, note: SequenceNote) -> Bundle:
        """The same network with a sequence model: not calibrated, as its logits are others.

        How often test patients were looked at stays on record.
        """
        return Bundle(self.network, with_sequence_note(self.card, note), sequence)

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

    def predict(
        self,
        paths: Iterable[Location],
        point: str = OPERATING_POINT,
        *,
        slabs: bool = True,
        without_preamble: bool = False,
    ) -> list[Prediction]:
        """One row per file, or frame of one, in order; folders are searched for files, hidden ones left out.

        Whole series belong into one call: neighbors, the box of `crop: head` and slabs are made of the files that are
        given. A lone file stands in for its neighbors and is flagged `neighbors_unknown`, its own box is taken
        (`head_of_slice`), and it is not averaged; of other parts of a series nothing is said, and probabilities may
        be others. For more rows than should lie in memory see `batch_predict.predict`.

        Args:
            paths: files and folders.
            point: the operating point whose threshold decides.
            slabs: average series finer than the slices that trained the bundle, see `TrainingData.slab_rule`.
            without_preamble: read files that begin with their meta information, too.

        Raises:
            ConfigError: a path does not exist, there is no file, or the bundle has no such operating point.
        """
        from ich_ray.bundle.input_survey import read_facts_ahead, survey_inputs
        from ich_ray.bundle.prediction import Predictor, list_inputs

        predictor, inputs = Predictor(self, point, without_preamble=without_preamble), list_inputs(paths)
        found = survey_inputs(inputs, read_facts_ahead(inputs, without_preamble), self.card.training_data, slabs)
        return [row for rows in predictor.stream(found.inputs, found.table, found.slabs) for row in rows]


def load_bundle(path: Location) -> Bundle:
    """Load a bundle and check that the weights are those that its card describes.

    What the card describes is compared with the header of the weights file before anything of its size is allocated.

    Raises:
        ConfigError: there is no bundle.
        IntegrityError: the card or the weights are not what was saved, or a number in them is not finite.
    """
    folder = locate(path)
    card = read_card(folder)
    network = _loaded(folder, card, card.parameters, card.weights)
    others = [_loaded(folder, card, member.parameters, member.weights) for member in card.members]
    sequence = read_sequence(folder, card)
    try:
        return Bundle(network, card, sequence, others=others)
    except ConfigError as error:
        raise IntegrityError(f"{folder / 'card.json'}: {error}; {REMEDY}") from None


def _loaded(folder: UPath, card: Card, parameters: Hyperparameters, weights: WeightsNote) -> Network:
    """One network of a bundle."""
    network = _described(folder, card, parameters)
    tensors = read_weights_file(folder, weights, layout_of(network))
    try:
        return filled(network, tensors, parameters, card.image_shape)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise damaged_weights(folder / weights.file, error) from None


def _described(folder: UPath, card: Card, parameters: Hyperparameters) -> Network:
    """A network of a card, without memory."""
    try:
        _ = card.scaling
        return outline(parameters, card.image_shape)
    except (IchRayError, RuntimeError, OverflowError) as error:
        line = str(error).strip().splitlines()[-1]
        raise IntegrityError(
            f"{folder / 'card.json'}: must describe a network and its scaling, got {line}; {REMEDY}"
        ) from None
