"""Stopping rules by the name in `budget.rule`.

One from outside is registered by `STOPPING_RULES.register("its_name", ItsClass)`.
"""

from __future__ import annotations

from ich_ray.registry import Registry
from ich_ray.search.stopping.base import Course, StoppingRule

__all__ = ["STOPPING_RULES", "Course", "StoppingRule"]

STOPPING_RULES: Registry[type[StoppingRule]] = Registry(
    "stopping_rules", {"asha": f"{__name__}.asha:AshaRungs"}, home=__name__
)
