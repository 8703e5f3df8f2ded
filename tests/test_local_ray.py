"""The token of a Ray of this process alone. That such a Ray starts without a home is tried in test_ordinary_user.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_config import JobConfig

from ich_ray.errors import ConfigError, IchRayError
from ich_ray.local_ray import own_token, start_ray
from ich_ray.ray_internals import forget_authentication

NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")


def environment() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in NAMES}


@pytest.fixture(autouse=True)
def _no_token(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        for name in NAMES:
            patch.delenv(name, raising=False)
        yield
    forget_authentication()  # what these tests have set


def test_a_ray_gets_a_token_that_is_drawn_and_forgotten_and_nothing_is_written_at_home(tmp_path: Path) -> None:
    drawn = set()
    for _ in range(2):
        with own_token():
            token = environment()["RAY_AUTH_TOKEN"] or ""
            assert len(bytes.fromhex(token)) == 32
            drawn.add(token)
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        assert environment() == dict.fromkeys(NAMES)
    assert len(drawn) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_token_of_the_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ray").mkdir()
    file = tmp_path / ".ray" / "auth_token"
    file.write_text("a" * 64)
    with own_token():
        assert environment() == dict.fromkeys(NAMES)
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does where it finds one
    assert environment() == dict.fromkeys(NAMES)
    file.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "elsewhere"))
    with own_token():
        assert environment()["RAY_AUTH_TOKEN"] is None
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    with own_token():
        assert environment()["RAY_AUTH_TOKEN"] == "b" * 64
    assert environment()["RAY_AUTH_TOKEN"] == "b" * 64


def test_a_file_of_a_token_that_is_not_there_is_told_before_ray_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    told = f"RAY_AUTH_TOKEN_PATH: must name a file that can be read, got {tmp_path / 'none'}; correct it, or unset it"
    with pytest.raises(ConfigError) as caught, own_token():
        pytest.fail("a Ray would be started")
    assert str(caught.value) == told


def test_a_token_that_is_set_after_another_ray_is_what_ray_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._raylet import get_authentication_mode

    with own_token():
        pass
    unset = get_authentication_mode()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c" * 64)
    assert get_authentication_mode() == unset
    with own_token():
        assert get_authentication_mode() != unset


def test_a_ray_that_does_not_start_ends_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise TimeoutError("no node")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(IchRayError, match=r"^Ray: must start on this machine within 120 s, got no node; see .*/logs$"):
        start_ray(JobConfig(), cpus=1)
