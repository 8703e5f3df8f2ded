"""Pseudonyms: keyed, stable, and a key file that nobody else can read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ich_ray.data.pseudonyms import Pseudonyms
from ich_ray.errors import ConfigError


def test_names_depend_on_key_and_kind() -> None:
    one, other = Pseudonyms(b"a" * 32), Pseudonyms(b"b" * 32)
    assert one.name("patient", "X") == one.name("patient", "X") == "p" + one.name("patient", "X")[1:]
    assert len({one.name("patient", "X"), other.name("patient", "X"), one.name("study", "X")}) == 3
    assert one.name("study", "") == ""
    assert one.check != other.check
    assert "aaa" not in repr(one)


def test_tokens_do_not_depend_on_the_key_and_travel_masked() -> None:
    found = set()
    for key in (b"a" * 32, b"b" * 32):
        names = Pseudonyms(key)
        masked = names.masked_token("X")
        found.add(names.token(masked, names.name("patient", "X")))
        assert masked not in found
    assert len(found) == 1


def test_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ICH_RAY_KEY_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = Pseudonyms.load()
    path = tmp_path / "ich_ray" / "pseudonym.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Pseudonyms.load().check == first.check
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="only its owner may read"):
        Pseudonyms.load()
    path.chmod(0o600)
    path.write_text("secret-but-no-key")
    with pytest.raises(ConfigError, match="64 hexadecimal digits") as caught:
        Pseudonyms.load()
    assert "secret" not in str(caught.value)
