"""Secrets written where everybody reads them: found in text, named by kind and line, never repeated.

For files that are shared or shipped: cluster files, search spaces, job commands. Patterns only; it cannot know a
password that looks like a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ich_ray.errors import ConfigError

__all__ = ["Secret", "find_secrets", "refuse_secrets"]

# Public formats of the issuers. Order matters only for which kind a line is said to hold.
_PATTERNS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?i)aws.{0,20}secret.{0,20}[\"'=:\s][A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "an Azure storage key": r"AccountKey=[A-Za-z0-9+/=]{40,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a bearer token": r"(?:\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.|(?i:\bbearer\s+)[A-Za-z0-9._~+/-]{20,})",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:(?!\$)[^\s/@'\"]+@",
    "a Ray token": (
        r"(?i)RAY_AUTH_TOKEN\b[\"']?\s*[:=]\s*[\"']?(?![$<{])[^\s\"']{6,}"
        r"|auth_token[\"']?\s*[:=]\s*[\"']?[0-9a-f-]{16,}"
    ),
    "a password": (
        r"(?i)(?:password|passwd|passphrase|secret|api_?key|access_?key|auth_?key|token)[\"']?\s*[:=]\s*[\"']?"
        r"(?!(?:null|none|true|false|required|token)\b)(?![$<{~/])[^\s\"',#]{6,}"
    ),
    "a long hexadecimal secret": r"\b[0-9a-fA-F]{32,}\b",
}
_COMPILED = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}
# A longer line is scanned in pieces, because some patterns cost its length squared; the overlap holds any secret.
_PIECE, _OVERLAP = 4000, 500


@dataclass(frozen=True)
class Secret:
    """What a line holds; not the secret itself."""

    line: int
    kind: str


def find_secrets(text: str) -> list[Secret]:
    """The lines of `text` that seem to hold a secret, each with the first kind that fits."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        kinds = (kind for piece in _pieces(line) for kind, pattern in _COMPILED.items() if pattern.search(piece))
        if kind := next(kinds, None):
            found.append(Secret(number, kind))
    return found


def _pieces(line: str) -> list[str]:
    return [line[start : start + _PIECE] for start in range(0, len(line), _PIECE - _OVERLAP)]


def refuse_secrets(text: str, where: str) -> None:
    """Refuse text that is about to be shared.

    Raises:
        ConfigError: it holds a secret; the line and the kind are named, the secret is not.
    """
    found = find_secrets(text)
    if found:
        named = ", ".join(f"{secret.kind} in line {secret.line}" for secret in found[:3])
        raise ConfigError(
            f"{where}: others read it, so it must hold no secret, got {named}; take it out and let each machine read "
            "its own from its environment or a file of mode 0600"
        )
