from __future__ import annotations

import pytest

from ich_ray.errors import IntegrityError, Interrupted
from ich_ray.notify.stage import telling
from tests.notify.webhook import Webhook


def told(webhook: Webhook) -> str:
    return str(webhook.messages[-1]["text"]).partition("; it took")[0]


def test_a_stage_tells_how_it_ended_and_nothing_of_why(webhook: Webhook) -> None:
    with telling("confirm", f"{webhook.url}/x"):
        pass
    assert told(webhook) == "confirm has ended"
    for error, ending in (
        (IntegrityError("/home/somebody/search: must be whole"), "failed (IntegrityError, its output says why)"),
        (Interrupted("/home/somebody/search"), "was interrupted"),
        (KeyboardInterrupt(), "was interrupted"),
    ):
        with pytest.raises(type(error)), telling("retrain", f"{webhook.url}/x"):
            raise error
        assert told(webhook) == f"retrain {ending}"
        assert "somebody" not in str(webhook.messages)
    assert len(webhook.messages) == 4


def test_a_stage_without_an_address_tells_nobody(webhook: Webhook) -> None:
    with telling("confirm", None):
        pass
    assert webhook.messages == []
