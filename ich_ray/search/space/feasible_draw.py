"""Find a random draw of a space that its constraints do not refuse."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.search.space.space import RandomSuggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ich_ray.search.space.constraints import Refuses
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Parameter

__all__ = ["check_fits", "first_that_fits"]

# Where fewer than one draw in a thousand fits, the file means another space.
_MOST_DRAWS = 1000
_TOLD_AFTER = 100


def check_fits(space: SearchSpace, refuses: Refuses, seed: int) -> None:
    """Check that some draw fits, and some of each point.

    Raises:
        ConfigError: none does.
    """
    for point in ({}, *space.points):
        first_that_fits(space, refuses, seed, point)


def first_that_fits(
    space: SearchSpace, refuses: Refuses, seed: int, point: Mapping[str, Parameter] | None = None
) -> dict[str, Parameter]:
    """The first random draw that no constraint refuses, with the values of a point.

    Raises:
        ConfigError: there is none in a thousand.
    """
    found: Counter[str] = Counter()
    suggest = RandomSuggest(seed, point)
    for refusals in range(_MOST_DRAWS):
        if refusals == _TOLD_AFTER:
            say(f"constraints: {refusals} random draws refused, at most {_MOST_DRAWS:,} are tried (can take minutes)")
        drawn = space.draw(suggest)
        if (refused := refuses(drawn.hyperparameters)) is None:
            return drawn.parameters
        found[refused.constraint] += 1
    ((most, _),) = found.most_common(1)
    raise ConfigError(
        f"constraints: some draw {f'of point {dict(point)} ' if point else ''}of the space {space.name} must keep "
        f"{space.constraints}, got none in {_MOST_DRAWS:,}, most refused by {most}; raise it, or add smaller networks"
    )
