from __future__ import annotations

import pytest
import yaml

from ich_ray.errors import ConfigError
from ich_ray.search.gpu_shares import DeviceKind
from ich_ray.search.plan.share_plan import CONTEXT_BYTES, Need, SharePlan, TrialNeeds, needed, plan_shares
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.vocabulary import Placement
from tests.search.fakes import SPACE

GIB = 2**30
SMALL = DeviceKind(8 * GIB, 2, 16, frozenset({"a"}))
LARGE = DeviceKind(80 * GIB, 1, 6, frozenset({"b"}))
PLAN = SharePlan((SMALL, LARGE), tuple(need * GIB for need in (1, 1, 1.5, 4, 8, 100)))


def test_the_plan_says_shares_and_how_many_trials_fit_where() -> None:
    assert str(PLAN) == (
        "  shares of a GPU: of each trial what 6 draws need, 1 to 100 GiB: 1.3 times their tensors and 1 GiB\n"
        "    2 x 8 GiB: 0.125 for 2, 0.25 for 1, 0.5 for 1, 1 for 1 of the draws; 4 usual trials at a time\n"
        "    1 x 80 GiB: 0.125 for 5 of the draws; 6 usual trials at a time\n"
        "    1 draws need more than any has, and get a whole one of the largest"
    )
    assert PLAN.concurrent == 10
    assert PLAN.figures()[0] == {
        "memory_bytes": 8 * GIB,
        "devices": 2,
        "draws_by_share": {"0.125": 2, "0.25": 1, "0.5": 1, "1": 1},
        "usual_trials_at_a_time": 4,
    }


@pytest.mark.parametrize(
    ("placement", "need"),
    [
        ("auto", Need(1.3 * 1000 + CONTEXT_BYTES, 500)),  # images only where they fit beside
        ("host", Need(1.3 * 1000 + CONTEXT_BYTES, 0)),
        ("device", Need(1.3 * 1000 + CONTEXT_BYTES + 500, 0)),
    ],
)
def test_images_count_where_they_must_be_on_the_device(placement: Placement, need: Need) -> None:
    assert TrialNeeds((3, 16, 16), 500, placement).of_tensors(1000) == need


def test_a_larger_network_needs_more_and_one_that_fits_no_image_nothing_of_its_own() -> None:
    needs = TrialNeeds((3, 64, 64), 0)
    small, large = (needs({"architecture": name}).bytes for name in ("plain_cnn", "resnet18"))
    assert CONTEXT_BYTES < small < large
    assert TrialNeeds((3, 4, 4), 0)({"architecture": "plain_cnn", "blocks": 4}).bytes == needed(0)


def test_shares_follow_from_the_first_draws() -> None:
    space = parse_space(yaml.safe_load(SPACE), "space.yaml")
    plan = plan_shares(space, TrialNeeds((3, 64, 64), 0), [SMALL])
    assert len(plan.needs) > 3
    assert list(plan.needs) == sorted(plan.needs)
    assert plan.shares(SMALL).keys() <= {0.125, 0.25, 0.5, 1.0}
    assert sum(plan.shares(SMALL).values()) == len(plan.needs)


def test_a_space_of_which_nothing_fits_the_images_is_refused() -> None:
    source = yaml.safe_load(SPACE)
    source["parameters"] |= {"architecture": {"fixed": "plain_cnn"}, "blocks": {"fixed": 4}}
    with pytest.raises(ConfigError, match=r"auto: a draw of the space must fit the images, got unknown; .* give a n"):
        plan_shares(parse_space(source, "s.yaml"), TrialNeeds((3, 4, 4), 0), [SMALL])
