"""Files in, a row of what the model says of each out.

Knows files and bundles, not labels. Every input has exactly one row: a probability with the decision at an operating
point, or the reason why there is none: a code of `ct/dicom.py`, `out_of_memory`, or `not_finite` where the network or
the card gives no number. Images live for one batch only, so memory grows neither with the archive nor with a series.
Rows carry the UIDs that the files carry, so that they can be found again: treat them like the files.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import torch

from ich_ray.bundle.input_survey import Input
from ich_ray.bundle.series_prediction import SeenSlices, SeriesColumns, sequence_flags
from ich_ray.bundle.series_reading import Seen, SeriesImages, SliceReader, walk
from ich_ray.bundle.threads import mapped_ahead
from ich_ray.bundle.work_parts import in_order, single_slices, whole_series
from ich_ray.data.prepare.list_files import list_files
from ich_ray.errors import ConfigError
from ich_ray.model.input_shape import input_channels
from ich_ray.progress import say
from ich_ray.storage import Location, is_local, locate
from ich_ray.training.inference import EVALUATION_BATCH
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.input_survey import SeriesTable
    from ich_ray.bundle.operating_point import OperatingPoint
    from ich_ray.bundle.series_prediction import SeriesScorer
    from ich_ray.bundle.work_parts import Part
    from ich_ray.ct.slabs import Slabs

__all__ = [
    "SUBTYPE_COLUMNS",
    "LabelledPrediction",
    "Pictures",
    "Prediction",
    "Predictor",
    "Scorer",
    "SubtypeColumns",
    "list_inputs",
]

Decision = Literal["positive", "negative", ""]
# Of the slices that make up an input, uint8 `[channels, rows, columns]` each.
SliceImages: TypeAlias = "Sequence[NDArray[np.uint8]]"


@dataclass(frozen=True)
class Prediction:
    """One input file, or frame of one; a rejected one has a reason and no probability.

    Attributes:
        file: as given, `file#frame` for a frame.
        reason: a code; a file that was read and then not decided (`not_finite`) keeps its UIDs.
        series: SeriesInstanceUID.
        flags: keys of `ct.dicom.FLAGS`, `training_data.FAR_FLAGS` and those of `series_reading.py`, with commas
            between.
    """

    file: str
    slice_id: str = ""
    study: str = ""
    probability: float | None = None
    decision: Decision = ""
    operating_point: str = ""
    threshold: float | None = None
    heatmap: str = ""
    reason: str = ""
    series: str = ""
    flags: str = ""


@dataclass(frozen=True)
class SubtypeColumns:
    """What a bundle that answers the subtypes adds at the end of a row.

    In a study it is that of the series that answers for it. None is forced below the probability of `any`, which
    decides.
    """

    probability_epidural: float | None = None
    probability_intraparenchymal: float | None = None
    probability_intraventricular: float | None = None
    probability_subarachnoid: float | None = None
    probability_subdural: float | None = None


# Fields of the last base come first.
@dataclass(frozen=True)
class LabelledPrediction(SubtypeColumns, Prediction):
    """One input of a bundle that answers the subtypes."""


@dataclass(frozen=True)
class SeriesPrediction(SeriesColumns, Prediction):
    """One input of a bundle with a sequence model, or with studies calibrated by themselves."""


@dataclass(frozen=True)
class LabelledSeriesPrediction(SeriesColumns, LabelledPrediction):
    """One such input of a bundle that answers the subtypes."""


SUBTYPE_COLUMNS = tuple(f"probability_{name}" for name in SUBTYPES)


def list_inputs(paths: Iterable[Location]) -> list[Input]:
    """List the files at `paths`, in order, folders searched.

    Hidden files are left out, links that lead out are refused. A file that is given more than once stands where it was
    given first, which is said.

    Raises:
        ConfigError: a path does not exist, or there is no file at all.
    """
    found: dict[str, Input] = {}  # by where the file really lies
    given = 0
    for path in map(locate, paths):
        really = path.resolve() if is_local(path) else path
        if path.is_dir():
            listing = list_files(path)
            inside = sorted([*((name, "") for name in listing.files), *listing.refused])
            names = [(name, reason) for name, reason in inside if not name.split("/")[-1].startswith(".")]
            for name, reason in names:
                found.setdefault(str(really / name), Input(str(path / name), reason))
            given += len(names)
        elif path.exists():
            found.setdefault(str(really), Input(str(path)))
            given += 1
        else:
            raise ConfigError(f"{path}: a file or folder of slices must be there, got none; check the path")
    if not found:
        raise ConfigError("predict: at least one file must be given, got none; check that the folder is not empty")
    if given > len(found):
        say(f"  {given - len(found)} of {given} files were given before and are read once")
    return [*found.values()]


class Scorer(Protocol):
    """What gives logits and probabilities, such as a bundle."""

    @property
    def card(self) -> Card: ...

    def operating_point(self, name: str) -> OperatingPoint: ...

    def label_logits(
        self, images: NDArray[np.uint8], rectangles: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]: ...

    def label_calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float64]: ...


class Pictures(Protocol):
    """What draws a picture of each slice, such as heat maps."""

    def write(
        self,
        files: Sequence[str],
        images: NDArray[np.uint8],
        probabilities: NDArray[np.float64],
        threshold: float,
        rectangles: NDArray[np.float32] | None = None,
    ) -> list[str]: ...


class Batch(NamedTuple):
    """What is decided at a time.

    Attributes:
        places: of its slices in their part.
        rows: without decisions.
        images: of each row without a reason, those that make up its input.
        rectangles: what is shown of each of these, `[n, 4]`; None where all of it is.
    """

    places: Sequence[int]
    rows: Sequence[Prediction]
    images: Sequence[SliceImages]
    rectangles: NDArray[np.float32] | None


class Predictor:
    """A bundle at one of its operating points.

    Attributes:
        kind: the columns of its rows.
        row_kind: of its rows, which keep logits `for_studies` that are scaled by themselves.

    Raises:
        ConfigError: the bundle has no such operating point.
    """

    def __init__(
        self,
        bundle: Scorer,
        point: str,
        heatmaps: Pictures | None = None,
        *,
        without_preamble: bool = False,
        for_studies: bool = False,
    ) -> None:
        self.bundle, self.point, self.heatmaps, self.without_preamble = bundle, point, heatmaps, without_preamble
        self.threshold = bundle.operating_point(point).threshold
        several = bundle.card.parameters.labels == "all"
        keeps_logits = bundle.card.sequence is not None or (for_studies and bundle.card.studies is not None)
        self.kind = LabelledPrediction if several else Prediction
        of_series = LabelledSeriesPrediction if several else SeriesPrediction
        self.row_kind: type[Prediction] = of_series if keeps_logits else self.kind
        # Heat maps hang hooks into the one network that there is.
        self._one_at_a_time = nullcontext() if heatmaps is None else Lock()

    def parts(
        self, inputs: Sequence[Input], table: SeriesTable | None = None, slabs: Slabs | None = None
    ) -> list[Part]:
        """The inputs in parts of a batch: whole series where others decide how a slice is seen.

        Args:
            inputs: files, or frames of them.
            table: what their headers say; without it each is alone.
            slabs: around the slices of thin series.
        """
        parameters, sequence = self.bundle.card.parameters, self.bundle.card.sequence
        if table is None or not (sequence or parameters.neighbors or parameters.crop == "head" or slabs):
            return single_slices(inputs, EVALUATION_BATCH)
        return whole_series(inputs, table, EVALUATION_BATCH, slabs)

    def stream(
        self, inputs: Sequence[Input], table: SeriesTable | None = None, slabs: Slabs | None = None
    ) -> Iterator[list[Prediction]]:
        """Rows in the order of the inputs, some at a time, see `parts`."""
        parts = self.parts(inputs, table, slabs)
        return in_order(parts, self.rows(parts))

    def rows(self, parts: Sequence[Part]) -> Iterator[list[Prediction]]:
        """Rows of each part, in turn, from one thread for each that PyTorch would use.

        Each thread reads a batch and takes it through the network alone: both leave Python alone for most of their
        time, nobody waits for anybody, and a network on two threads of one batch was measured to take twice the CPU
        time of one on one, as they spin where they wait. Few inputs leave PyTorch its threads.
        """
        threads = torch.get_num_threads()
        workers = max(1, min(threads, len(parts)))
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
        try:
            yield from mapped_ahead(pool, self.predict, parts, workers)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # what threads to come would start with

    def predict(self, part: Part) -> list[Prediction]:
        """The rows of a part, in the order of its inputs."""
        if self.bundle.card.sequence is not None:
            return self._predict_series(part)
        found: dict[int, Prediction] = {}
        for batch in self.read(part):
            with self._one_at_a_time:
                rows = self.decide(batch.rows, batch.images, batch.rectangles)
            found.update(zip(batch.places, rows, strict=True))
        return [found[place] for place in range(len(part.inputs))]

    def _predict_series(self, part: Part) -> list[Prediction]:
        """The same by a sequence model; where heat maps are asked for, images wait for their series, too."""
        rows: dict[int, Prediction] = {}
        seen = SeenSlices(part, cast("SeriesScorer", self.bundle))
        shown: dict[int, tuple[NDArray[np.uint8], NDArray[np.float32] | None]] = {}
        for batch in self.read(part):
            rows.update(zip(batch.places, batch.rows, strict=True))
            if not batch.images:
                continue
            places = [place for place, row in zip(batch.places, batch.rows, strict=True) if not row.reason]
            pixels = self._beside_each_other(batch.images)
            with self._one_at_a_time:
                seen.add(places, pixels, batch.rectangles)
            if self.heatmaps is not None:
                shown.update({place: (pixels[at], _at(batch.rectangles, at)) for at, place in enumerate(places)})
        places_seen, probabilities, of_series = seen.answers()
        for start in range(0, len(places_seen), EVALUATION_BATCH):
            some = slice(start, start + EVALUATION_BATCH)
            places = places_seen[some].tolist()
            told = [
                _with_logits(rows[place], logits)
                for place, logits in zip(places, of_series[some].tolist(), strict=True)
            ]
            pixels_of = [shown.pop(place) for place in places if place in shown]
            images = np.stack([image for image, _ in pixels_of]) if pixels_of else None
            cut = [rectangle for _, rectangle in pixels_of if rectangle is not None]
            with self._one_at_a_time:
                decided = self._told(told, probabilities[some], images, np.stack(cut) if cut else None)
            rows.update(zip(places, decided, strict=True))
        found = [rows[place] for place in range(len(part.inputs))]
        flags = sequence_flags([row.reason for row in found], part)
        return [_flagged(row, flag) if flag else row for row, flag in zip(found, flags, strict=True)]

    def read(self, part: Part) -> Iterator[Batch]:
        """A batch at a time. A series of more slices than a batch is never in memory as a whole."""
        seen = self._walked(part)
        while batch := [*islice(seen, EVALUATION_BATCH)]:
            rows = [self._undecided(part.inputs[place], one) for place, one, _ in batch]
            images = [one.images for _, one, _ in batch if not one.reason]
            shown = [rectangle for *_, rectangle in batch if rectangle is not None]
            yield Batch([place for place, *_ in batch], rows, images, np.stack(shown) if shown else None)

    def _walked(self, part: Part) -> Iterator[tuple[int, Seen, NDArray[np.float32] | None]]:
        """The slices of all series of a part, each with its place among the inputs and what is shown of it."""
        reader, card, before = SliceReader(self.without_preamble), self.bundle.card, 0
        for series in part.series():
            images = SeriesImages(series, reader, card)
            for one in walk(series, images, card.parameters.neighbors):
                if one.header is None:
                    yield before + one.index, one, None
                else:
                    flagged = replace(one, flags=(*one.flags, *images.lacks(one.header)))
                    yield before + one.index, flagged, images.rectangle(one.header)
            before += len(series.inputs)

    def _undecided(self, given: Input, seen: Seen) -> Prediction:
        from ich_ray.ct.slice_file import frame_name  # pydicom is not needed to load a bundle

        file, header = frame_name(given.file, given.frame), seen.header
        if header is None:
            return self.row_kind(file=file, reason=seen.reason)
        flags = {*header.flags, *seen.flags, *filter(None, given.flags.split(","))}
        return self.row_kind(
            file=file,
            slice_id=header.slice_id,
            study=header.study,
            series=header.series,
            flags=",".join(sorted(flags)),
        )

    def decide(
        self,
        rows: Sequence[Prediction],
        images: Sequence[SliceImages],
        rectangles: NDArray[np.float32] | None = None,
    ) -> list[Prediction]:
        """The rows with probability, decision and, if asked for, heat map.

        A row whose logit or probability is not finite gets the reason `not_finite`; its batch is decided without it.

        Args:
            rows: a batch of them.
            images: of each row without a reason, those that make up its input.
            rectangles: of each of these, where a part of it is shown.
        """
        if not images:
            return list(rows)
        pixels = self._beside_each_other(images)
        logits = self.bundle.label_logits(pixels, rectangles)
        if self.row_kind is not self.kind:
            # Of a probability of 1 no logit can be told, and studies are scaled by themselves.
            told = iter(logits.tolist())
            rows = [row if row.reason else _with_logits(row, next(told)) for row in rows]
        return self._told(rows, self.bundle.label_calibrated(logits), pixels, rectangles)

    def _told(
        self,
        rows: Sequence[Prediction],
        by_label: NDArray[np.float64],
        pixels: NDArray[np.uint8] | None,
        rectangles: NDArray[np.float32] | None,
    ) -> list[Prediction]:
        """The rows decided by probabilities `[n, labels]` of those without a reason; pixels are for heat maps."""
        probabilities = by_label[:, -1]
        finite = np.asarray(np.isfinite(by_label).all(1))
        told = iter(finite.tolist())
        rows = [row if row.reason or next(told) else replace(row, reason="not_finite") for row in rows]
        accepted = [row.file for row in rows if not row.reason]
        maps = [""] * len(accepted)
        if self.heatmaps is not None and accepted and pixels is not None:
            shown = None if rectangles is None else rectangles[finite]
            maps = self.heatmaps.write(accepted, pixels[finite], probabilities[finite], self.threshold, shown)
        found = zip(by_label[finite].tolist(), maps, strict=True)
        return [row if row.reason else self._decided(row, *next(found)) for row in rows]

    def _beside_each_other(self, images: Sequence[SliceImages]) -> NDArray[np.uint8]:
        """The inputs of the network, uint8 `[n, *card.input_shape]`, see model/input_shape.py."""
        card = self.bundle.card
        counts = input_channels(card.parameters, card.image_shape[0])
        pixels = np.empty((len(images), *card.input_shape), np.uint8)
        for place, beside in enumerate(images):
            np.concatenate([image[:count] for image, count in zip(beside, counts, strict=True)], out=pixels[place])
        return pixels

    def _decided(self, row: Prediction, by_label: Sequence[float], heatmap: str) -> Prediction:
        *subtypes, probability = by_label
        of_subtypes: dict[str, Any] = dict(zip(SUBTYPE_COLUMNS, subtypes, strict=False))
        return replace(
            row,
            **of_subtypes,
            probability=probability,
            decision="positive" if probability >= self.threshold else "negative",
            operating_point=self.point,
            threshold=self.threshold,
            heatmap=heatmap,
        )


def _flagged(row: Prediction, flag: str) -> Prediction:
    return replace(row, flags=",".join(sorted({flag, *filter(None, row.flags.split(","))})))


def _with_logits(row: Prediction, logits: Sequence[float]) -> Prediction:
    """The row with these logits, if they are finite; without, it is not decided."""
    columns: dict[str, Any] = {"series_logits": tuple(logits)} if np.isfinite(logits).all() else {}
    return replace(row, **columns)


def _at(rectangles: NDArray[np.float32] | None, place: int) -> NDArray[np.float32] | None:
    return None if rectangles is None else rectangles[place]
