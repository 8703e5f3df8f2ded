"""What a bundle says of sizes is compared before it is allocated; each damaged file is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray.bundle import bundle as bundles
from ich_ray.bundle import weights_file
from ich_ray.bundle.bundle import load_bundle
from ich_ray.errors import IntegrityError
from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.model.outline import filled, outline
from ich_ray.model.tensors import layout_of
from ich_ray.storage import SearchFiles, locate, sha256

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(retrained: SearchFiles, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    load_bundle(retrained.bundle).save(tmp_path / "bundle")
    return tmp_path / "bundle"


def change_card(folder: Path, **values: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **values}))


def put(folder: Path, data: bytes) -> None:
    """Weights whose hash is that of the card, so that nothing but their content can be refused."""
    (folder / WEIGHTS).write_bytes(data)
    change_card(folder, weights={"file": WEIGHTS, "sha256": sha256(data)})


def packed(header: Any, tensors: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


# The last one computes tensors that no file holds.
OF_TIMM = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_vit_relpos")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.names(), *(f"timm/{name}" for name in OF_TIMM)])
def test_an_outline_that_is_filled_is_the_network(architecture: str) -> None:
    parameters = Hyperparameters(architecture=architecture, filters=4, dense=8)
    torch.manual_seed(0)
    built, bare = build_network(parameters, (2, 64, 64)), outline(parameters, (2, 64, 64))
    assert {value.device.type for value in bare.parameters()} == {"meta"}
    assert layout_of(bare) == layout_of(built)
    images = torch.randint(0, 256, (2, 2, 64, 64), dtype=torch.uint8)
    weights = {name: value.clone() for name, value in built.state_dict().items()}
    network = filled(bare, weights, parameters, (2, 64, 64))
    assert torch.equal(network.eval()(images), built.eval()(images))
    for one, other in zip(network.parameters(), built.parameters(), strict=True):
        assert (one.stride(), one.requires_grad) == (other.stride(), other.requires_grad)


@pytest.mark.parametrize(
    "values",
    [
        {"image_shape": [3, 64, 64]},
        {"image_shape": [1, 32, 32]},
        {"image_shape": [3, 1 << 40, 1 << 40], "size": 1 << 40},
        {"size": -1, "image_shape": [3, -1, -1]},
        {"windows": [], "image_shape": [0, 32, 32]},
        {"architecture": "resnet50"},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(copy: Path, values: dict[str, Any]) -> None:
    change_card(copy, **values)
    with pytest.raises(IntegrityError, match=r"card\.json: must|card\.json: image_shape|card\.json: architecture"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "values",
    [
        {"filters": 512, "blocks": 6, "dense": 4096},
        {"architecture": "stacked_cnn", "convolutions": "99/1,99/1,99/1", "filters": 512},
        {"architecture": "stacked_cnn", "convolutions": "3/1", "filters": 512, "dense": 4096},
        {"architecture": "resnet50"},
    ],
)
def test_a_network_that_is_not_in_the_file_is_never_allocated(
    copy: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("memory was taken")

    card = json.loads((copy / "card.json").read_text())
    architecture = values.get("architecture", "plain_cnn")
    change_card(copy, parameters={**card["parameters"], **values}, architecture=architecture, size=512,
                image_shape=[3, 512, 512])  # fmt: skip
    monkeypatch.setattr(bundles, "filled", refused)
    monkeypatch.setattr(weights_file, "unpack", refused)
    with pytest.raises(IntegrityError, match=r"safetensors: must be the weights of its card|card\.json: must describe"):
        load_bundle(copy)


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "a length alone": bytes(8),
    "a length of exabytes": b"\xff" * 8 + b"{}",
    "no JSON": packed(b"\xfe\xff" * 40),
    "deep JSON": packed(b"[" * 100_000),
    "a huge number": packed(b'{"a": ' + b"1" * 5000 + b"}"),
    "a list": packed([1]),
    "no tensors": packed({}),
    "a tensor of nothing": packed({"a": None}),
    "a shape of text": packed({"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 4]}}),
    "a shape below zero": packed({"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}, bytes(16)),
    "exabytes": packed({"a": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}),
    "notes that are none": packed({"__metadata__": 7}),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_damaged_header_is_refused(copy: Path, data: bytes) -> None:
    put(copy, data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: must be the weights of its card, got .*; restore"):
        load_bundle(copy)


@pytest.mark.parametrize("what", ["shorter", "longer", "another type", "another shape", "one more", "other offsets"])
def test_what_does_not_fit_the_card_is_refused(copy: Path, what: str) -> None:
    data = (copy / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    first = next(name for name in header if name.endswith("weight"))
    if what == "another type":
        header[first]["dtype"] = "I32"
    elif what == "another shape":
        header[first]["shape"] = header[first]["shape"][::-1]
    elif what == "one more":
        header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(tensors), len(tensors) + 4]}
        tensors += bytes(4)
    elif what == "other offsets":
        header[first]["data_offsets"][1] += 4
    put(copy, {"shorter": data[:-4], "longer": data + bytes(9 << 20)}.get(what) or packed(header, tensors))
    with pytest.raises(IntegrityError, match=r"model\.safetensors: must be the weights of its card, got .*; restore"):
        load_bundle(copy)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_opened(copy: Path, kind: str) -> None:
    for file in (copy / WEIGHTS, copy / "card.json"):
        kept = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("/dev/zero")
        with pytest.raises(IntegrityError, match=rf"{file.name}: must be a file, got something else"):
            load_bundle(copy)
        file.rmdir() if kind == "folder" else file.unlink()
        file.write_bytes(kept)
    assert np.isfinite(load_bundle(locate(copy)).logits(np.zeros((1, 3, 32, 32), np.uint8))).all()
