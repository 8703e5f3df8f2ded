"""Files in, a row of what the model says of each out; rows by study on request.

Knows files and bundles, not labels. Every input has exactly one row: a probability with the decision at an operating
point, or the reason why there is none: a code of `ct/dicom.py`, `out_of_memory`, or `not_finite` where the network or
the card gives no number. Images live for one batch only, so memory does not grow with the archive. Rows carry the UIDs
that the files carry, so that they can be found again: treat them like the files.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from ich_ray.data.prepare.list_files import list_files
from ich_ray.errors import ConfigError, Rejection
from ich_ray.progress import say
from ich_ray.statistics.aggregation import most_probable
from ich_ray.storage import Location, is_local, locate
from ich_ray.training.inference import EVALUATION_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from ich_ray.bundle.card import Card, OperatingPoint
    from ich_ray.ct.dicom import SliceHeader

__all__ = [
    "Input",
    "Pictures",
    "Prediction",
    "Predictor",
    "Scorer",
    "Studies",
    "StudyPrediction",
    "list_inputs",
    "read_input",
]

Decision = Literal["positive", "negative", ""]
Input = tuple[str, str]  # a file, and why it is refused before it is opened; empty if it is not


@dataclass(frozen=True)
class Prediction:
    """One input file; a rejected one has a reason and no probability.

    Attributes:
        reason: a code; a file that was read and then not decided (`not_finite`) keeps its UIDs.
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


@dataclass(frozen=True)
class StudyPrediction:
    """One study, as probable as its most probable slice, which is `file`.

    A rejected file has a row of its own.
    """

    study: str
    slices: int
    positive_slices: int
    probability: float | None
    decision: Decision
    operating_point: str
    threshold: float | None
    file: str
    reason: str = ""


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
                found.setdefault(str(really / name), (str(path / name), reason))
            given += len(names)
        elif path.exists():
            found.setdefault(str(really), (str(path), ""))
            given += 1
        else:
            raise ConfigError(f"{path}: a file or folder of slices must be there, got none; check the path")
    if not found:
        raise ConfigError("predict: at least one file must be given, got none; check that the folder is not empty")
    if given > len(found):
        say(f"  {given - len(found)} of {given} files were given before and are read once")
    return [*found.values()]


def read_input(file: str, card: Card) -> tuple[SliceHeader, NDArray[np.uint8]]:
    """The header of a file, and what a network is given for it, uint8 `card.input_shape`.

    Raises:
        Rejection: the file holds no slice that can be read.
    """
    from ich_ray.ct.dicom import read_slice  # pydicom is not needed to load a bundle
    from ich_ray.ct.windowing import window_slice

    found = read_slice(file)
    return found.header, window_slice(found, card.windows, card.size)


class Scorer(Protocol):
    """What gives probabilities, such as a bundle."""

    @property
    def card(self) -> Card: ...

    def operating_point(self, name: str) -> OperatingPoint: ...

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]: ...


class Pictures(Protocol):
    """What draws a picture of each slice, such as heat maps."""

    def write(
        self, files: Sequence[str], images: NDArray[np.uint8], probabilities: NDArray[np.float64], threshold: float
    ) -> list[str]: ...


class Predictor:
    """A bundle at one of its operating points.

    Raises:
        ConfigError: the bundle has no such operating point, or its network sees more than single slices.
    """

    def __init__(self, bundle: Scorer, point: str, heatmaps: Pictures | None = None) -> None:
        if neighbors := bundle.card.parameters.neighbors:
            raise ConfigError(
                f"predict: a network that sees single slices must be given, got one with neighbors: {neighbors}, which "
                "files alone do not tell; prepare them and use `ich-ray evaluate`, or retrain with neighbors: 0"
            )
        self.bundle, self.point, self.heatmaps = bundle, point, heatmaps
        self.threshold = bundle.operating_point(point).threshold
        # Heat maps hang hooks into the one network that there is.
        self._one_at_a_time = nullcontext() if heatmaps is None else Lock()

    def stream(self, inputs: Sequence[Input]) -> Iterator[list[Prediction]]:
        """Rows in order, a batch at a time, from one thread for each that PyTorch would use.

        Each thread reads a batch and takes it through the network alone: both leave Python alone for most of their
        time, nobody waits for anybody, and a network on two threads of one batch was measured to take twice the CPU
        time of one on one, as they spin where they wait. Few inputs leave PyTorch its threads.
        """
        batches = [inputs[start : start + EVALUATION_BATCH] for start in range(0, len(inputs), EVALUATION_BATCH)]
        threads = torch.get_num_threads()
        workers = max(1, min(threads, len(batches)))
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
        ahead: deque[Future[list[Prediction]]] = deque()
        try:
            for batch in batches:
                ahead.append(pool.submit(self._predict, batch))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # what threads to come would start with

    def _predict(self, inputs: Sequence[Input]) -> list[Prediction]:
        rows, images = self.read(inputs)
        with self._one_at_a_time:
            return self.decide(rows, images)

    def read(self, inputs: Sequence[Input]) -> tuple[list[Prediction], list[NDArray[np.uint8]]]:
        """Rows without decisions, and the image of each row without a reason."""
        rows, images = [], []
        for file, reason in inputs:
            row = Prediction(file, reason=reason)
            try:
                if not reason:
                    header, image = read_input(file, self.bundle.card)
                    images.append(image)
                    row = Prediction(file, slice_id=header.slice_id, study=header.study)
            except Rejection as rejection:
                row = Prediction(file, reason=rejection.reason)
            except MemoryError:
                row = Prediction(file, reason="out_of_memory")
            rows.append(row)
        return rows, images

    def decide(self, rows: Sequence[Prediction], images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """The rows with probability, decision and, if asked for, heat map.

        A row whose logit or probability is not finite gets the reason `not_finite`; its batch is decided without it.
        """
        if not images:
            return list(rows)
        pixels = np.stack(images)
        probabilities = self.bundle.probabilities(pixels)
        finite = np.isfinite(probabilities)
        told = iter(finite.tolist())
        rows = [row if row.reason or next(told) else replace(row, reason="not_finite") for row in rows]
        accepted = [row.file for row in rows if not row.reason]
        maps = [""] * len(accepted)
        if self.heatmaps is not None and accepted:
            maps = self.heatmaps.write(accepted, pixels[finite], probabilities[finite], self.threshold)
        found = zip(probabilities[finite].tolist(), maps, strict=True)
        return [row if row.reason else self._decided(row, *next(found)) for row in rows]

    def _decided(self, row: Prediction, probability: float, heatmap: str) -> Prediction:
        return replace(
            row,
            probability=probability,
            decision="positive" if probability >= self.threshold else "negative",
            operating_point=self.point,
            threshold=self.threshold,
            heatmap=heatmap,
        )


class Studies:
    """Rows gathered by study: memory grows with studies, and by two numbers for each slice.

    Attributes:
        repeated: files whose slice was in their study before, under another name: such a slice is counted once, and
            positive if any of its files is.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self._found: dict[str, StudyPrediction] = {}
        self._positive: dict[int, bool] = {}  # each slice, by the hash of its UIDs

    def add(self, rows: Iterable[Prediction]) -> None:
        """Count more rows in, in their order."""
        parts: dict[str, list[StudyPrediction]] = {}
        for row in rows:
            # A file without a study, or rejected, stands for itself.
            key = f"study {row.study}" if row.study and not row.reason else f"file {row.file}"
            if key not in parts:
                parts[key] = [self._found[key]] if key in self._found else []
            parts[key].append(_alone(row, *self._new(row)))
        self._found |= dict(zip(parts, _joined([*parts.values()]), strict=True))

    def _new(self, row: Prediction) -> tuple[bool, bool]:
        """Whether the row is of one more slice, and of one more positive slice."""
        positive = row.decision == "positive"
        if row.reason or not (row.study and row.slice_id):
            return not row.reason, positive
        uids = hash((row.study, row.slice_id))
        before = self._positive.get(uids)
        self._positive[uids] = positive or bool(before)
        self.repeated += before is not None
        return before is None, positive and not before

    def rows(self) -> list[StudyPrediction]:
        """In the order in which they were first met."""
        return list(self._found.values())


def _alone(row: Prediction, is_new: bool, is_new_positive: bool) -> StudyPrediction:
    """The study of one row, with no slice if that has been counted before."""
    decided = (row.probability, row.decision, row.operating_point, row.threshold, row.file, row.reason)
    return StudyPrediction(row.study, int(is_new), int(is_new_positive), *decided)


def _joined(studies: Sequence[Sequence[StudyPrediction]]) -> list[StudyPrediction]:
    """Each study of its parts: it is decided as its most probable slice is."""
    parts = [part for study in studies for part in study]
    groups = np.repeat(np.arange(len(studies)), [len(study) for study in studies])
    chosen = most_probable(groups, np.array([part.probability or 0.0 for part in parts]))
    return [
        replace(
            parts[position],
            slices=sum(part.slices for part in study),
            positive_slices=sum(part.positive_slices for part in study),
        )
        for study, position in zip(studies, chosen.tolist(), strict=True)
    ]
