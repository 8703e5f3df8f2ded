"""What the two reports published, and what follows from it by arithmetic alone.

The numbers of this file are quotations; everything else is computed from them. Knows no data and no search.
"""

from __future__ import annotations

from dataclasses import dataclass

from ich_ray.statistics.metrics import Confusion, f_beta

__all__ = [
    "REPORT_A",
    "REPORT_B",
    "PublishedA",
    "PublishedB",
    "PublishedCandidate",
    "implied",
]


@dataclass(frozen=True)
class PublishedCandidate:
    """A row of report B's table 1. Its last column is called specificity there.

    Attributes:
        printed: that last column.
    """

    name: str
    f2: float
    accuracy: float
    sensitivity: float
    printed: float

    @property
    def f2_of_printed(self) -> float:
        """Its formula with the printed column: `f_beta` of sensitivity and PPV; 0 where nothing was found."""
        return f_beta(self.printed, self.sensitivity) if self.sensitivity else 0.0

    @property
    def decisions(self) -> Confusion:
        """Shares of all slices, if the printed column is the PPV."""
        return implied(self.accuracy, self.sensitivity, self.printed)


def implied(accuracy: float, sensitivity: float, ppv: float) -> Confusion:
    """The shares of slices that three figures imply, and so the prevalence p and the specificity.

    With s and v for sensitivity and PPV, the false positives are p s (1 - v) / v of all slices, so that
    accuracy = 1 - p (1 - s) - p s (1 - v) / v, which is solved for p. Without a true positive there is no false one, as
    a PPV of 0 and an undefined one are printed alike.
    """
    wrong = 1 - sensitivity + (sensitivity * (1 - ppv) / ppv if sensitivity else 0.0)
    prevalence = (1 - accuracy) / wrong
    tp = prevalence * sensitivity
    fp = tp * (1 - ppv) / ppv if sensitivity else 0.0
    return Confusion(tp=tp, fp=fp, fn=prevalence - tp, tn=1 - prevalence - fp)


@dataclass(frozen=True)
class PublishedA:
    """Report A: "accuracy of around 86%", and a precision that stagnates.

    It "seems to stagnate at 0.15, even as recall increases".
    """

    accuracy: float
    precision: float
    images: int


@dataclass(frozen=True)
class PublishedB:
    """Report B: table 1, its text, and figure 7.

    Attributes:
        positives: slices with haemorrhage among `slices`.
        cross_validated: mean and deviation of the F2 of five folds; and of the accuracy.
        threshold: the one with the highest F2 on the slices it was trained on.
        holdout: figure 7.
    """

    candidates: tuple[PublishedCandidate, ...]
    positives: int
    slices: int
    cross_validated: tuple[float, float]
    cross_validated_accuracy: tuple[float, float]
    threshold: float
    holdout: Confusion
    holdout_f2: float
    hours: float
    hours_epochs: int

    @property
    def prevalence(self) -> float:
        return self.positives / self.slices


REPORT_A = PublishedA(accuracy=0.86, precision=0.15, images=674_257)

REPORT_B = PublishedB(
    candidates=tuple(
        PublishedCandidate(f"m{number}", *figures)
        for number, figures in enumerate(
            [
                (0.5360824742268042, 0.478, 0.9059233449477352, 0.20360219263899765),
                (0.27452415812591513, 0.8225, 0.2613240418118467, 0.3440366972477064),
                (0.0, 0.8565, 0.0, 0.0),
                (0.46023091725465043, 0.1585, 1.0, 0.14568527918781726),
                (0.4577157802964254, 0.8053333333333333, 0.4883720930232558, 0.36585365853658536),
                (0.4555084745762712, 0.14333333333333334, 1.0, 0.14333333333333334),
                (0.5818181818181818, 0.797, 0.6697674418604651, 0.38145695364238413),
                (0.4203792551976239, 0.8231666666666667, 0.42790697674418604, 0.3927427961579509),
                (0.5938308090136682, 0.7418333333333333, 0.7479643272586274, 0.3255146810664867),
                (0.6188475390156063, 0.7333888888888889, 0.7995347033734005, 0.325031525851198),
            ],
            1,
        )
    ),
    positives=107_933,
    slices=107_933 + 644_870,
    cross_validated=(0.492, 0.232),
    cross_validated_accuracy=(0.795, 0.035),
    threshold=0.420,
    holdout=Confusion(tp=17_471, fp=30_991, fn=4_094, tn=97_951),
    holdout_f2=0.648,
    hours=20.0,
    hours_epochs=20,
)
