"""Addresses as text: whose they are, and whether they hold credentials.

Opens and contacts nothing.
"""

from __future__ import annotations

import re

__all__ = ["authority", "holds_credentials", "is_foreign", "without_credentials"]

# Protocols as fsspec tells them; one letter alone is a drive. Links of a chain such as zip://x::s3://y stand apart.
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+|(?=[^/]))")
# Of a protocol so many letters at most, or a long word would be read once for each of its letters.
_LINK = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,62}):/+(?:\[[0-9A-Fa-f:.%]*\]|(?!::)[^\s'\"<>])*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:@\[\]]*)(:\d*)?")
# abfss://container@account.dfs.core.windows.net: what looks like a user is the container.
_AZURE = ("abfs", "abfss", "wasb", "wasbs")
_CONTAINER = re.compile(r"[\w$-]+@[\w.-]+")
# Query parts that sign or open a request: X-Amz-Signature, sig and se of Azure's SAS, token, AWSAccessKeyId.
_SECRET = re.compile(
    r"[?&;#](?:[\w.-]*(?:signature|credential|token|secret|session|passw|pwd|apikey|api[_-]key|accesskey)[\w.-]*"
    r"|sig|key|pass|auth|authorization|user|username)=",
    re.IGNORECASE,
)


def holds_credentials(address: str) -> bool:
    """Whether an address, or a link of a chain of them, holds credentials.

    These are a user, a password, a token or a signature.
    """
    return any(_cleaned(link) != link[0] for link in _LINK.finditer(address))


def without_credentials(text: str) -> str:
    """An address, or a text in which there are some, without users, passwords and secret query parts."""
    return _LINK.sub(_cleaned, text)


def _cleaned(link: re.Match[str]) -> str:
    """One address; all that follows a secret query part goes with it."""
    address, protocol = link[0], link[1].lower()
    secret = _SECRET.search(address)
    kept = address[: secret.start()] if secret else address
    start = kept.index(":") + 1
    start += len(kept[start:]) - len(kept[start:].lstrip("/"))
    rest = kept[start:]
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" not in rest or _HOST.fullmatch(host) or (protocol in _AZURE and _CONTAINER.fullmatch(host)):
        return kept
    # A secret key may hold a slash, so that its @ comes later.
    behind = (host if "@" in host else rest).rpartition("@")[2] + (rest[len(host) :] if "@" in host else "")
    return kept[:start] + behind


def authority(address: str) -> str | None:
    """Protocol and host or bucket; None for a path of this machine.

    A chain of addresses is nobody's but its own.
    """
    if "::" in address and _PROTOCOL.search(address):
        return address
    found = _PROTOCOL.match(address)
    if found is None or found[1].lower() in {"file", "local"}:
        return None
    return f"{found[1].lower()}://{re.split(r'[/?#]', address[found.end() :], maxsplit=1)[0].lower()}"


def is_foreign(address: str, opened: str) -> bool:
    """Whether an address read from a file leads elsewhere.

    Elsewhere is neither this machine nor where the file lies.

    Args:
        address: what the file names.
        opened: what the user has named, where the file was found: its bucket or host may be asked for more.
    """
    return authority(address) not in {None, authority(opened)}
