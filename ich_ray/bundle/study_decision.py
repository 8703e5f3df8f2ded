"""How a study is decided: what turns its logits into probabilities, and at which threshold.

By what `calibrate` fitted to studies; where it fitted nothing, by what it fitted to slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.bundle.card import Card
    from ich_ray.bundle.logit_scaling import LogitScaling

__all__ = ["StudyDecision"]

_PREFIX = "study_"


@dataclass(frozen=True)
class StudyDecision:
    """What is fitted to studies, and what to slices.

    Attributes:
        point: its name, `study_f2` and so on where studies have points of their own.
        of_slices: the operating point that decides slices meanwhile.
        slices: by label, what turned logits into the probabilities of slices; `any` last.
        studies: by label, what turns logits of studies into theirs; None where it is the same.
    """

    point: str
    threshold: float
    of_slices: str
    slices: tuple[LogitScaling, ...]
    studies: tuple[LogitScaling, ...] | None = None

    @classmethod
    def of_card(cls, card: Card, point: str) -> StudyDecision:
        """The decision at an operating point: that of studies of this name, else that of slices.

        Raises:
            ConfigError: the bundle has none of that name.
        """
        of_slices = point.removeprefix(_PREFIX)
        fitted = card.studies
        own = {} if fitted is None else fitted.operating_points
        if fitted is None or not own:
            if of_slices != point:
                raise ConfigError(
                    f"bundle: the operating point {point!r} comes from the studies of calibration patients, got none; "
                    f"use {of_slices}, which decides by slices, or `ich-ray calibrate` with more of them"
                )
            held = card.operating_points.get(point)
            return cls(point, held.threshold if held else 0.0, point, card.scalings)
        named = f"{_PREFIX}{of_slices}"
        if named not in own:
            raise ConfigError(
                f"bundle: the operating point {point!r} of studies comes from calibration, got {', '.join(own)}; "
                "name one of these, or predict by slice"
            )
        first = next(iter(card.operating_points), of_slices)
        studies = tuple(fitted.labels[name].scaling for name in card.parameters.predicted_labels)
        decides = of_slices if of_slices in card.operating_points else first
        return cls(named, own[named].threshold, decides, card.scalings, studies)

    def logits(self, probabilities: Sequence[float]) -> list[float]:
        """The logits of a slice, of each label."""
        return [float(scaling.logits(p)) for scaling, p in zip(self.slices, probabilities, strict=True)]

    def probabilities(self, of_slice: Sequence[float]) -> list[float]:
        """Of a study, by label, whose most probable slices have these probabilities."""
        if self.studies is None:
            return list(of_slice)
        logits = np.array(self.logits(of_slice))
        return [float(scaling(logit)) for scaling, logit in zip(self.studies, logits, strict=True)]
