from __future__ import annotations

import copy
import pickle

from ray import tune

from ich_ray.search.tune.quiet_tune import _Resources


def test_trials_share_what_they_need_of_a_machine() -> None:
    shared = _Resources([{"CPU": 2, "GPU": 0.5}])
    assert copy.deepcopy({"resources": shared})["resources"] is shared
    sent = pickle.loads(pickle.dumps(shared))  # noqa: S301
    assert type(sent) is tune.PlacementGroupFactory
    assert sent == shared
    assert sent.required_resources == {"CPU": 2, "GPU": 0.5}
