"""Published systems as they were, beside what this package makes of the same slices.

Nothing else imports them: they announce what they add to the registries, so that files that name it open everywhere.
"""

from __future__ import annotations

from ich_ray.registry import announce

announce("architectures", {"stacked_cnn": f"{__name__}.sequential_cnn:SEQUENTIAL_CNN"})
announce(
    "validation_metrics",
    {name: f"{__name__}.fixed_threshold:{name}" for name in ("sensitivity_at_half", "specificity_at_half")},
)
announce("verbs", {name: f"{__name__}.command_line:{name}" for name in ("reproduce", "probe")})
announce("flags", {"at_half": f"{__name__}.command_line:AT_HALF", "sample": f"{__name__}.command_line:SAMPLE"})
