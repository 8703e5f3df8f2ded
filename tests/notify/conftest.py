from __future__ import annotations

from collections.abc import Iterator

import pytest

from ich_ray.notify import notifier
from tests.notify.webhook import LONG_S, Webhook, running_webhook


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with much to do must not look like a dead address."""
    monkeypatch.setattr(notifier, "TIME_LIMIT_S", LONG_S)
    monkeypatch.setattr(notifier, "_LAST_WAIT_S", LONG_S)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with running_webhook() as made:
        yield made
