from __future__ import annotations

from typing import get_args

from ich_ray import vocabulary
from tests.test_house import PACKAGE, imports


def test_files_hold_these_words_so_that_none_may_change() -> None:
    assert vocabulary.LABELS == (
        "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any",
    )  # fmt: skip
    assert vocabulary.ROLES == get_args(vocabulary.Role) == ("train", "validation", "calibration", "test")
    assert get_args(vocabulary.Patients) == ("train", "train+validation")
    assert get_args(vocabulary.Split) == ("patient", "slice")
    assert get_args(vocabulary.TtaView) == ("hflip", "depth_flip")
    assert get_args(vocabulary.Precision) == ("float32", "bfloat16 channels_last")


def test_it_needs_nothing_of_ours() -> None:
    assert imports(PACKAGE / "vocabulary.py") == {"__future__", "typing"}
