"""How a cluster is reached from outside: the dashboard's address and the token.

Refuses what would give the token away. Opens no connection and knows nothing of Ray: jobs.py and doctor.py do.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from ich_ray.errors import ConfigError
from ich_ray.storage import holds_credentials, without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

__all__ = [
    "Access",
    "Token",
    "find_token",
    "go_past_proxies",
    "is_loopback",
    "open_to_others",
    "reach",
    "token_file",
]

# Where `ray dashboard cluster.yaml` puts its end of the tunnel.
TUNNEL = "http://localhost:8265"
# A token is 64 characters; a file far longer is something else.
_TOKEN_BYTES = 4096


@dataclass(frozen=True)
class Token:
    """What a cluster asks for, and where it was found."""

    value: str = field(repr=False)
    source: str


@dataclass(frozen=True)
class Access:
    """The dashboard of a cluster: `http://host:port`, what to show it, and who has named it."""

    url: str
    token: Token | None
    source: str = "--address"

    def __str__(self) -> str:
        return f"{self.source} {self.url}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.value}"} if self.token else {}

    @property
    def host_and_port(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def reach(address: str | None, environ: Mapping[str, str] = os.environ) -> Access:
    """The dashboard at `address`, with the token of this user.

    Args:
        address: such as ``http://localhost:8265``; if not given ``RAY_API_SERVER_ADDRESS``, an ``http`` address in
            ``RAY_ADDRESS``, or the near end of the tunnel that `ray dashboard cluster.yaml` opens.
        environ: the environment.

    Raises:
        ConfigError: it is no such address, the token's file is open to others, or the token would travel unencrypted.
    """
    named = {
        "--address": address,
        "RAY_API_SERVER_ADDRESS": environ.get("RAY_API_SERVER_ADDRESS"),
        "RAY_ADDRESS": _http(environ.get("RAY_ADDRESS", "")),
        "the tunnel's end": TUNNEL,
    }
    source, url = next((source, url) for source, url in named.items() if url)
    url = url if "://" in url else f"http://{url}"
    _check_no_credentials(url, source)
    parts = _split(url, source)
    token = find_token(environ)
    if token and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(
            f"{source} {url}: a token must not travel unencrypted, got http to another machine; open a tunnel with "
            f"`ray dashboard cluster.yaml` and use {TUNNEL}, or use https"
        )
    return Access(f"{parts.scheme}://{parts.netloc}", token, source)


def _http(address: str) -> str:
    return address if address.startswith(("http://", "https://")) else ""


def _split(url: str, source: str) -> SplitResult:
    """The parts of an address that jobs can be sent to; Ray itself would import a module named by another scheme."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            f"{source} {url}: jobs go to the dashboard of a cluster, got no http or https address; "
            f"use {TUNNEL} and keep `ray dashboard cluster.yaml` open"
        )
    return parts


def _check_no_credentials(url: str, source: str) -> None:
    if holds_credentials(url):
        raise ConfigError(
            f"{source} {without_credentials(url)}: an address is shown and stored and must hold no user, password or "
            "token, got one; leave it out, the token comes from RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine and nobody else can listen on the way."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def go_past_proxies(host: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Bypass the proxies of the environment where `host` is this machine.

    They would be shown the token.
    """
    spared = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if is_loopback(host) and not {host, "*"} & {name.strip() for name in spared.split(",")}:
        spared = f"{spared},{host}".strip(",")
        environ.update(no_proxy=spared, NO_PROXY=spared)


def token_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the token lies, if it lies in a file."""
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    # A user without a home has no such file; `Path.expanduser` would fail.
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111
    return Path(named).expanduser() if named else Path(home) / ".ray" / "auth_token"


def find_token(environ: Mapping[str, str] = os.environ) -> Token | None:
    """The token in ``RAY_AUTH_TOKEN``, else in the file; None without one.

    None also with ``RAY_AUTH_MODE=disabled``. The order is Ray's own.

    Raises:
        ConfigError: others can read the file, or it is none.
    """
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if environ.get("RAY_AUTH_TOKEN"):
        return Token(_checked(environ["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN"), "RAY_AUTH_TOKEN")
    path = token_file(environ)
    if not path.is_file():
        if environ.get("RAY_AUTH_TOKEN_PATH"):
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: must name the token's file, got none at {path}; correct it")
        return None
    if open_to_others(path):
        mode = path.stat().st_mode & 0o777
        raise ConfigError(
            f"{path}: only you may read a token, got mode {mode:04o}; `chmod 600 {path}`, and make a new token if "
            "others use this machine"
        )
    with path.open("rb") as file:
        text = file.read(_TOKEN_BYTES + 1).decode("ascii", "replace")
    return Token(_checked(text, str(path)), str(path))


def open_to_others(path: Path) -> bool:
    """Whether the group or others may read or write a file."""
    return bool(path.stat().st_mode & 0o077)


def _checked(text: str, source: str) -> str:
    """A token that fits in a header; anything else is a mistake, or an attempt to add headers."""
    value = text.strip()
    if not value or len(value) > _TOKEN_BYTES or not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigError(
            f"{source}: a token must be one word of printable characters, got {len(value)} characters that are not; "
            "copy the cluster's token again"
        )
    return value
