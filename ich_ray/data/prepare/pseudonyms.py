"""Pseudonyms of patients, studies, series, slices and files, linked only with a key.

Names are HMAC-SHA-256 under a key that never lies in a dataset: `$ICH_RAY_KEY_FILE`, else `pseudonym.key` in the user's
configuration folder, made on first use and readable by its owner only. It is what stands between a dataset and its
patients: a key that others may read, may have written, or may guess is refused. Roles must not depend on that key, so
that two people get the same ones; they are drawn from a token of the patient, which leaves a worker only masked by the
key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ich_ray.errors import ConfigError
from ich_ray.storage import folder_of_home

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Kind", "Pseudonyms", "key_file"]

_KEY_BYTES = 32
_KEY_TEXT_BYTES = 256  # with any white space around it
_TOKEN_BYTES = 16
# A key drawn at random has fewer than 16 distinct bytes in less than 3 of 10^16 cases (C(256, 15) (15 / 256)^32); one
# byte again and again has 1, 0123456789abcdef four times has 8.
_DISTINCT_BYTES = 16
_LETTERS = {"patient": "p", "study": "t", "series": "s", "slice": "i", "file": "f"}
Kind = Literal["patient", "study", "series", "slice", "file"]


@dataclass(frozen=True)
class Pseudonyms:
    """Names made with one key. Sent to workers, never written."""

    key: bytes = field(repr=False)

    @classmethod
    def load(cls) -> Pseudonyms:
        """Read the key file, or make one.

        Raises:
            ConfigError: others may read it or have written it, or it is no key, or one that can be guessed.
        """
        path = key_file()
        try:
            try:
                key = _read_key(path)
            except FileNotFoundError:
                key = _make_key(path)
        except (OSError, ValueError):
            raise ConfigError(
                f"{path}: the key of the pseudonyms must be a readable file of {2 * _KEY_BYTES} hexadecimal digits; "
                "set ICH_RAY_KEY_FILE to another place, or remove it to get new pseudonyms"
            ) from None
        return cls(key)

    @property
    def check(self) -> str:
        """Tells keys apart without telling the key."""
        return self._digest("check", "").hex()[:16]

    def name(self, kind: Kind, identifier: str) -> str:
        """The pseudonym of an identifier; empty for an empty one."""
        return f"{_LETTERS[kind]}{self._digest(kind, identifier).hex()[:16]}" if identifier else ""

    def names(self, kind: Kind, identifiers: Iterable[str]) -> list[str]:
        """The pseudonym of each."""
        return [self.name(kind, identifier) for identifier in identifiers]

    def masked_token(self, identifier: str) -> str:
        """What roles are drawn from: a digest of the identifier alone, unreadable without the key."""
        token = hashlib.blake2b(identifier.encode(), digest_size=_TOKEN_BYTES, person=b"ich_ray roles").digest()
        return self._mask(token, self.name("patient", identifier)).hex()

    def token(self, masked: str, name: str) -> str:
        """The token behind a mask, given the patient's pseudonym."""
        return self._mask(bytes.fromhex(masked), name).hex()

    def _mask(self, token: bytes, name: str) -> bytes:
        return bytes(a ^ b for a, b in zip(token, self._digest("mask", name)[:_TOKEN_BYTES], strict=True))

    def _digest(self, kind: str, identifier: str) -> bytes:
        return hmac.digest(self.key, f"{kind}:{identifier}".encode(), "sha256")


def key_file() -> Path:
    """Where the key lies, or is to lie."""
    given = os.environ.get("ICH_RAY_KEY_FILE")
    if given:
        return Path(given).expanduser()
    base = folder_of_home("XDG_CONFIG_HOME", ".config", "name the file of the key in ICH_RAY_KEY_FILE")
    return base / "ich_ray" / "pseudonym.key"


def _read_key(path: Path) -> bytes:
    """The key in a file of this user, or of root, as secrets of Kubernetes are; a link to such a file is good, too.

    What is checked is what is read: both go through one descriptor.

    Raises:
        ConfigError: see `Pseudonyms.load`.
        OSError: the file cannot be read.
        ValueError: it holds no key.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it does not wait for the writer of a pipe
    try:
        _check_key_file(path, os.fstat(descriptor))
        text = os.read(descriptor, _KEY_TEXT_BYTES + 1)
    finally:
        os.close(descriptor)
    key = bytes.fromhex(text.decode("ascii").strip())
    if len(key) != _KEY_BYTES or len(text) > _KEY_TEXT_BYTES:
        raise ValueError
    if len({*key}) < _DISTINCT_BYTES:
        raise ConfigError(
            f"{path}: the key of the pseudonyms must be drawn at random, got one that can be guessed; remove it to get "
            "another one (and new pseudonyms)"
        )
    return key


def _check_key_file(path: Path, facts: os.stat_result) -> None:
    user, owner = os.geteuid(), facts.st_uid
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError(f"{path}: the key of the pseudonyms must be a file, got something else; name a file")
    if owner not in {user, 0}:
        raise ConfigError(
            f"{path}: the key of the pseudonyms must belong to this user or to root, got a file of user {owner}, who "
            f"may know it; run as that user or `chown {user} {path}`, or remove it to get new pseudonyms"
        )
    # Kubernetes gives a secret to a user that is not root by the group of the pod: root's, mode 440.
    others = 0o077 if owner == user else 0o037
    if facts.st_mode & others:
        raise ConfigError(f"{path}: only its owner may read the key of the pseudonyms; run `chmod 600 {path}`")


def _make_key(path: Path) -> bytes:
    """Make a key; of two processes that make one at the same time, both get the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_bytes(_KEY_BYTES)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.hex() + "\n")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return _read_key(path)
    finally:
        temporary.unlink()
    return key
