from __future__ import annotations

import copy
import pickle

import pytest
from ray import tune

from ich_ray.errors import IchRayError
from ich_ray.results import TrialResult
from ich_ray.search.tune.driver import _Resources, check_own_ends


def test_trials_share_what_they_need_of_a_machine() -> None:
    shared = _Resources([{"CPU": 2, "GPU": 0.5}])
    assert copy.deepcopy({"resources": shared})["resources"] is shared
    sent = pickle.loads(pickle.dumps(shared))  # noqa: S301
    assert type(sent) is tune.PlacementGroupFactory
    assert sent == shared
    assert sent.required_resources == {"CPU": 2, "GPU": 0.5}


def test_a_search_that_machines_have_ended_is_no_success() -> None:
    ended = ["", "device_error", "worker_died", "diverged"]
    trials = [TrialResult(number=number, parameters={}, reason=reason) for number, reason in enumerate(ended)]
    check_own_ends("s", trials)
    with pytest.raises(IchRayError, match=r"s: most trials must end by themselves, got 2 of 3 that failed for reasons"):
        check_own_ends("s", trials[:3])
