from __future__ import annotations

import pytest

from ich_ray.notify import notifier
from tests.notify.webhook import LONG_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with much to do must not look like a dead address."""
    monkeypatch.setattr(notifier, "TIME_LIMIT_S", LONG_S)
    monkeypatch.setattr(notifier, "_LAST_WAIT_S", LONG_S)
