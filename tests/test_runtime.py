from __future__ import annotations

import time

import pytest

from ich_ray.errors import ConfigError
from ich_ray.runtime import connected


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_without_a_cluster_is_refused_within_seconds(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"--address {address}: a Ray cluster must answer there"), connected(address):
        pass
    assert time.monotonic() - started < 30


def test_a_private_ray_ends_with_its_block_and_an_inner_block_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(cpus=1):
        assert ray.cluster_resources()["CPU"] == 1
        with connected():
            assert ray.cluster_resources()["CPU"] == 1
        assert ray.is_initialized()
    assert not ray.is_initialized()
