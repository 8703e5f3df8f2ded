"""Patients, studies and series under names that only the holder of a key can link to them.

Names are HMAC-SHA-256 under a key that never lies in a dataset: `$ICH_RAY_KEY_FILE`, else `pseudonym.key` in the user's
configuration folder, made on first use and readable by its owner only. Roles must not depend on that key, so that two
people get the same ones; they are drawn from a token of the patient, which leaves a worker only masked by the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ich_ray.errors import ConfigError

__all__ = ["Pseudonyms"]

_KEY_BYTES = 32
_TOKEN_BYTES = 16
_LETTERS = {"patient": "p", "study": "t", "series": "s"}


@dataclass(frozen=True)
class Pseudonyms:
    """Names made with one key. Sent to workers, never written."""

    key: bytes = field(repr=False)

    @classmethod
    def load(cls) -> Pseudonyms:
        """Read the key file, or make one.

        Raises:
            ConfigError: others may read it, or it is no key.
        """
        path = _key_file()
        try:
            key = _read_key(path) if path.exists() else _make_key(path)
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

    def name(self, kind: Literal["patient", "study", "series"], identifier: str) -> str:
        """The pseudonym of an identifier; empty for an empty one."""
        return f"{_LETTERS[kind]}{self._digest(kind, identifier).hex()[:16]}" if identifier else ""

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


def _key_file() -> Path:
    given = os.environ.get("ICH_RAY_KEY_FILE")
    if given:
        return Path(given).expanduser()
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "ich_ray" / "pseudonym.key"


def _read_key(path: Path) -> bytes:
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: only its owner may read the key of the pseudonyms; run `chmod 600 {path}`")
    key = bytes.fromhex(path.read_text().strip())
    if len(key) != _KEY_BYTES:
        raise ValueError
    return key


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
