"""Words that all rooms share: labels, roles of patients, splits, precisions, places of images.

Knows no file and no code of ours. `any` says whether a slice shows haemorrhage of any subtype.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "LABELS",
    "LEAK",
    "MATCH_RULES",
    "ROLES",
    "SUBTYPES",
    "Level",
    "MatchRule",
    "Patients",
    "Placement",
    "Precision",
    "Role",
    "Split",
    "Subtype",
    "TtaView",
]

Subtype = Literal["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]
SUBTYPES: tuple[Subtype, ...] = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS = (*SUBTYPES, "any")

Role = Literal["train", "validation", "calibration", "test"]
ROLES: tuple[Role, ...] = ("train", "validation", "calibration", "test")
# Who trains: with the validation patients among them nobody is left to stop on or to choose by.
Patients = Literal["train", "train+validation"]

# What roles were drawn by. With `slice`, the test slices are of patients whom training saw.
Split = Literal["patient", "slice"]
LEAK = (
    "LEAKS ON PURPOSE: roles were drawn by slice, so one patient stands in several of them. Every figure is inflated, "
    "none is available as a patient-level figure, and all this can do is to reproduce systems that were split this way."
)

# How a row of a label table names its slice: data/prepare/label_match.py has the rules.
MatchRule = Literal["uid", "path", "path_stem", "name", "stem"]
MATCH_RULES: dict[MatchRule, str] = {
    "uid": "SOPInstanceUID",
    "path": "path below the folder",
    "path_stem": "path without its suffix",
    "name": "file name",
    "stem": "file name without its suffix",
}
# What a row of a label table is about. What holds for a study holds for none of its slices alone.
Level = Literal["slice", "series", "study", "patient"]

# How accelerators compute: training/precision.py has the rule.
Precision = Literal["float32", "bfloat16 channels_last"]
# Where training images lie: in memory of the device, or on the host for a batch at a time.
Placement = Literal["auto", "device", "host"]

# What a bundle sees beside the image as it is: its mirror image, or neighbors below and above exchanged. bundle/tta.py
# makes each.
TtaView = Literal["hflip", "depth_flip"]
