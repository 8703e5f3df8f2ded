"""What confirm.json says of a race: how it was run, who was out of it when, and why."""

from __future__ import annotations

from ich_ray.storage import Count, Line, Record, Share

__all__ = ["LEVEL", "Dropped", "RaceNote"]

# A trial is out where it is less probable than this that it is as good as the leader.
LEVEL = 0.05


class Dropped(Record):
    """When a candidate was out of a race for good.

    Attributes:
        trainings: of all candidates, after which it was.
        chance: how probable it then was that it is as good as the leader.
        leader: that one's number.
        reason: empty, or why its own training failed.
    """

    trainings: Count
    chance: Share
    leader: Count
    reason: Line = ""


class RaceNote(Record):
    """How a race was run.

    Attributes:
        share: of the search's images, what it might spend; `allowed` trainings are that.
        trainings: that it took.
        level: a candidate is out where it is less probable than this that it is as good as the leader.
    """

    share: float
    allowed: Count
    trainings: Count
    level: Share = LEVEL
