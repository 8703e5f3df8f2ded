"""Pseudonyms: keyed, stable, and a key file that nobody else can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ich_ray.data.prepare.pseudonyms import Pseudonyms
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


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good key, and the environment that names it."""
    path = tmp_path / "key"
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(path))
    Pseudonyms.load()
    return path


@pytest.mark.parametrize(
    "text",
    ["00" * 32, "ab" * 32, "0123456789abcdef" * 4, bytes(range(15)).hex() + "00" * 17],
    ids=["zeros", "one byte", "all digits", "15 bytes"],
)
def test_a_key_that_can_be_guessed_is_refused(key: Path, text: str) -> None:
    key.write_text(text)
    with pytest.raises(ConfigError, match=r"key: the key of the pseudonyms must be drawn at random, got") as caught:
        Pseudonyms.load()
    assert text[:8] not in str(caught.value)
    key.write_text(f"\n{bytes(range(16)).hex()}{'00' * 16}\n")
    assert Pseudonyms.load().key == bytes([*range(16), *[0] * 16])


def test_the_key_of_another_user_is_refused(key: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(key, 65534, 65534)
    with pytest.raises(ConfigError, match=r"must belong to this user or to root, got a file of user 65534, who may"):
        Pseudonyms.load()


@pytest.mark.parametrize(
    ("mode", "good"), [(0o400, True), (0o440, True), (0o444, False), (0o460, False), (0o640, True)]
)
def test_a_secret_of_kubernetes_is_a_link_to_a_file_of_root_that_a_group_may_read(
    key: Path, mode: int, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("the file must be root's")
    key.rename(key.with_name("..data"))
    key.symlink_to("..data")
    key.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if good:
        assert len(Pseudonyms.load().key) == 32
        return
    with pytest.raises(ConfigError, match="only its owner may read"):
        Pseudonyms.load()


def test_a_key_that_is_no_file_is_refused_at_once(key: Path) -> None:
    key.unlink()
    os.mkfifo(key, 0o600)
    with pytest.raises(ConfigError, match="must be a file, got something else"):
        Pseudonyms.load()
    key.unlink()
    key.mkdir(0o700)
    with pytest.raises(ConfigError, match="must be a file, got something else"):
        Pseudonyms.load()
    key.rmdir()
    key.symlink_to("nothing")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        Pseudonyms.load()


@pytest.mark.parametrize("text", ["", "xyz", "ab" * 31, "ab" * 33, "\xff" * 64, " " * 300 + "ab" * 32])
def test_a_file_without_a_key_is_refused(key: Path, text: str) -> None:
    key.write_text(text)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        Pseudonyms.load()
