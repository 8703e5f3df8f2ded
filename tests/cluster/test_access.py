from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.cluster.access import Token, find_token, go_past_proxies, reach
from ich_ray.cluster.ray_errors import translate_errors
from ich_ray.errors import ConfigError
from ich_ray.runtime import cluster_address
from tests.cluster.heads import TOKEN, write_token


@pytest.mark.parametrize(
    ("address", "environ", "url"),
    [
        (None, {}, "http://localhost:8265"),
        ("http://127.0.0.1:9000/", {}, "http://127.0.0.1:9000"),
        ("localhost:9000", {}, "http://localhost:9000"),
        (None, {"RAY_API_SERVER_ADDRESS": "https://ray.example"}, "https://ray.example"),
        (None, {"RAY_ADDRESS": "http://localhost:1"}, "http://localhost:1"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://localhost:8265"),
    ],
)
def test_where_jobs_go(address: str | None, environ: dict[str, str], url: str, tmp_path: Path) -> None:
    assert reach(address, {"HOME": str(tmp_path), **environ}).url == url


@pytest.mark.parametrize(
    ("address", "environ", "named"),
    [
        (None, {}, "the tunnel's end http://localhost:8265"),
        ("localhost:9000", {"RAY_ADDRESS": "http://localhost:1"}, "--address http://localhost:9000"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://localhost:1"}, "RAY_API_SERVER_ADDRESS http://localhost:1"),
        (None, {"RAY_ADDRESS": "http://localhost:1"}, "RAY_ADDRESS http://localhost:1"),
    ],
)
def test_an_address_is_named_with_who_gave_it(
    address: str | None, environ: dict[str, str], named: str, tmp_path: Path
) -> None:
    access = reach(address, {"HOME": str(tmp_path), **environ})
    with (
        pytest.raises(ConfigError, match=f"^{named}: the dashboard of a Ray cluster must answer"),
        translate_errors(access),
    ):
        raise ConnectionRefusedError


def test_a_user_without_a_home_has_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert find_token({}) is None


@pytest.mark.parametrize(
    "address", ["auto", "ray://head:10001", "pickle://x", "os://x", "http://", "http://host:99999", "http://host:0x1"]
)
def test_what_is_no_dashboard_is_refused(address: str, tmp_path: Path) -> None:
    if address == "auto":
        assert reach(address, {"HOME": str(tmp_path)}).url == "http://auto"  # a host may have any name
        return
    with pytest.raises(ConfigError, match="jobs go to the dashboard of a cluster, got no http or https address"):
        reach(address, {"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@localhost:8265",
        "me:hunter2@localhost:8265",
        "ftp://me:hunter2@x",
        "https://host/?token=hunter2",
        "ray://me:hunter2@head:10001",
    ],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold no user, password or token") as caught:
        reach(address, {"HOME": str(tmp_path)})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="must hold no user, password or token") as caught:
        cluster_address(address)
    assert "hunter2" not in str(caught.value)


def test_the_token_is_found_in_the_order_of_ray_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    home = {"HOME": str(tmp_path)}
    assert find_token(home) is None
    own = write_token(tmp_path / ".ray" / "auth_token", "in-home\n")
    named = home | {"RAY_AUTH_TOKEN_PATH": str(write_token(tmp_path / "named", "in-file"))}
    assert find_token(home) == Token("in-home", str(own))
    assert find_token(named) == Token("in-file", str(tmp_path / "named"))
    assert find_token(named | {"RAY_AUTH_TOKEN": TOKEN}) == Token(TOKEN, "RAY_AUTH_TOKEN")
    assert find_token(named | {"RAY_AUTH_MODE": "disabled"}) is None
    assert reach(None, home).headers == {"Authorization": "Bearer in-home"}
    assert "in-home" not in repr(reach(None, home))


@pytest.mark.parametrize(
    ("mode", "fits"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o620, False)]
)
def test_a_token_that_others_can_read_or_write_is_refused(mode: int, fits: bool, tmp_path: Path) -> None:
    environ = {"RAY_AUTH_TOKEN_PATH": str(write_token(tmp_path / "token", mode=mode))}
    if fits:
        assert find_token(environ) == Token(TOKEN, str(tmp_path / "token"))
        return
    with pytest.raises(
        ConfigError, match=rf"token: only you may read a token, got mode 0{mode:o}; `chmod 600 "
    ) as caught:
        reach(None, environ)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "two words", "a\r\nX-Header: b", "é", "x" * 5000])
def test_what_is_no_token_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a token must be one word of printable characters"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(write_token(tmp_path / "token", text))})


def test_a_named_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH: must name the token's file, got none at /nowhere"):
        find_token({"RAY_AUTH_TOKEN_PATH": "/nowhere"})


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://[::1]:8265", True),
        ("https://head.example", True),
        ("http://10.0.0.5:8265", False),
        ("http://localhost.example:8265", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_a_token_never_travels_unencrypted(address: str, fits: bool) -> None:
    environ = {"RAY_AUTH_TOKEN": TOKEN}
    if fits:
        assert reach(address, environ).token
        return
    with pytest.raises(ConfigError, match="a token must not travel unencrypted"):
        reach(address, environ)
    assert reach(address, environ | {"RAY_AUTH_MODE": "disabled"}).headers == {}


@pytest.mark.parametrize(
    ("host", "before", "after"),
    [
        ("127.0.0.1", {}, "127.0.0.1"),
        ("localhost", {"NO_PROXY": "store.example"}, "store.example,localhost"),
        ("::1", {"NO_PROXY": "ignored", "no_proxy": "store.example"}, "store.example,::1"),
        ("localhost", {"no_proxy": "localhost,store.example"}, "localhost,store.example"),
        ("localhost", {"no_proxy": "*"}, "*"),
        ("ray.example", {"no_proxy": "store.example"}, "store.example"),  # a tunnel through the proxy, encrypted
    ],
)
def test_this_machine_is_reached_past_all_proxies(host: str, before: dict[str, str], after: str) -> None:
    environ = dict(before)
    go_past_proxies(host, environ)
    assert environ["no_proxy"] == after
    if after != before.get("no_proxy"):
        assert environ["NO_PROXY"] == after
