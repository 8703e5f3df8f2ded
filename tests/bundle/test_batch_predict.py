"""Real (small) DICOM files through `predict`: formats, studies, heat maps, and Ray Data."""

from __future__ import annotations

import csv
import json
import re
import stat
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ich_ray import cli, progress
from ich_ray.bundle import batch_predict
from ich_ray.bundle.batch_predict import Totals, predict
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.grad_cam import HeatMaps, grad_cam
from ich_ray.bundle.heatmap_overlay import overlay, strength
from ich_ray.bundle.input_survey import Input
from ich_ray.bundle.prediction import Predictor, list_inputs
from ich_ray.ct.windowing import brain_channel
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.storage import locate
from tests.data.folders import spoil, write_cohort
from tests.searched import calibrated_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_bundle(tmp_path_factory.mktemp("home"))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "scans", patients=6)
    return tmp_path / "scans"


def test_every_kind_of_file_has_its_row_in_every_format(bundle: Path, scans: Path, tmp_path: Path) -> None:
    """The same rows as CSV, JSON and Parquet; a reason where there is no probability, and the other way round."""
    reasons = spoil(scans, scans.parent / "labels.csv")
    kinds = {suffix: predict(bundle, [scans], tmp_path / f"out.{suffix}") for suffix in ("csv", "json", "parquet")}
    assert kinds["csv"] == kinds["json"] == kinds["parquet"]
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    written = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == written
    found = {str(Path(row["file"]).relative_to(scans)): row for row in rows}
    assert list(found) == sorted(found)
    # Labels and repeats do not matter to prediction: only what the file itself, or its name, is.
    unreadable = {"not_dicom", "hu_implausible", "not_ct", "path_escape", "not_regular"}
    expected = {file: reason for file, reason in reasons.items() if reason in unreadable}
    assert {file: row["reason"] for file, row in found.items() if row["reason"]} == expected
    assert set(found) == {*reasons, *(f"ID_{patient:02d}{number}.dcm" for patient in range(6) for number in range(2))}
    for row in rows:
        assert (row["probability"] is None) == bool(row["reason"]) == (row["decision"] == "")
    assert found["ID_000.dcm"]["study"] == "st0"
    positive = sum(row["decision"] == "positive" for row in rows)
    why, flags = Counter(expected.values()), Counter(flag for row in rows for flag in row["flags"].split(",") if flag)
    accepted = len(rows) - len(expected)
    # Copies and namesakes lie at one place; the training data had 512x512 pixels.
    assert flags == {"not_512": accepted, "far_matrix": accepted, "repeated_position": 6}
    assert kinds["csv"] == Totals(len(rows), accepted, positive, len(expected) - 1, why, accepted, flags, excluded=1)


def test_files_without_a_preamble_are_predicted_when_asked_and_patients_need_no_name(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    predict(bundle, [scans], tmp_path / "whole.json")
    for path in scans.iterdir():
        data, named = re.subn(rb"CANARY-\d", b" " * 8, path.read_bytes()[132:])
        assert named == 1
        path.write_bytes(data)
    whole = json.loads((tmp_path / "whole.json").read_text())
    arguments = ["predict", str(bundle), str(scans), "--out", str(tmp_path / "out.json")]
    assert cli.call(arguments) == 3
    assert {row["reason"] for row in json.loads((tmp_path / "out.json").read_text())} == {"not_dicom"}
    assert cli.call([*arguments, "--without-preamble"]) == 0
    for row in whole:
        row["flags"] = ",".join(sorted([*row["flags"].split(","), "no_preamble", "patient_blank"]))
    assert json.loads((tmp_path / "out.json").read_text()) == whole
    rows = load_bundle(bundle).predict([scans], without_preamble=True)
    assert [row.probability for row in rows] == [row["probability"] for row in whole]


def test_another_operating_point_decides_on_request(bundle: Path, scans: Path, tmp_path: Path) -> None:
    point = load_bundle(bundle).card.operating_points["sensitivity_90"]
    predict(bundle, [scans], tmp_path / "out.json", point="sensitivity_90")
    for row in json.loads((tmp_path / "out.json").read_text()):
        assert (row["operating_point"], row["threshold"]) == ("sensitivity_90", point.threshold)
        assert row["decision"] == ("positive" if row["probability"] >= point.threshold else "negative")
    with pytest.raises(ConfigError, match="the operating point 'f9' comes from calibration, got f2, sensitivity_90"):
        predict(bundle, [scans], tmp_path / "out.json", point="f9")


def test_studies_are_as_probable_as_their_most_probable_slice(
    bundle: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "page.txt").write_text("no slice")
    predict(bundle, [scans], tmp_path / "slices.parquet")
    assert cli.call(["predict", str(bundle), str(scans), "--out", str(tmp_path / "out.parquet"), "--by", "study"]) == 3
    told = capsys.readouterr().out
    slices = pq.read_table(tmp_path / "slices.parquet").to_pylist()
    studies = {row["study"]: row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert set(studies) == {"", *(f"st{patient}" for patient in range(6))}
    positive = sum(study["decision"] == "positive" for study in studies.values())
    assert told.startswith(f"13 inputs: {positive} of 6 studies positive, 1 rejected")
    for name, study in studies.items():
        of = [row for row in slices if row["study"] == name]
        if not name:
            assert (study["reason"], study["slices"], study["probability"]) == ("not_dicom", 0, None)
            continue
        most = max(of, key=lambda row: row["probability"])
        assert (study["probability"], study["file"], study["slices"]) == (most["probability"], most["file"], 2)
        assert study["positive_slices"] == sum(row["decision"] == "positive" for row in of)
        assert study["decision"] == ("positive" if study["positive_slices"] else "negative")


def test_batches_on_several_threads_come_back_in_order(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_bundle(bundle)
    inputs = list_inputs([scans])
    (whole,) = Predictor(loaded, "f2").stream(inputs)
    monkeypatch.setattr("ich_ray.bundle.prediction.EVALUATION_BATCH", 2)
    at_once: list[int] = []
    networks = Barrier(3)

    def meet(images: NDArray[np.uint8], _: object = None) -> NDArray[np.float32]:
        at_once.append(torch.get_num_threads())
        networks.wait(60)  # passed only if three batches are in the network at a time
        return Bundle.label_logits(loaded, images)

    monkeypatch.setattr(loaded, "label_logits", meet)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parts = list(Predictor(loaded, "f2").stream(inputs))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert [len(rows) for rows in parts] == [2] * 6
    assert at_once == [1] * 6
    rows = [row for rows in parts for row in rows]
    assert [row.file for row in rows] == [row.file for row in whole]
    assert [row.probability for row in rows] == pytest.approx([row.probability for row in whole], abs=1e-6)


def test_of_several_threads_one_makes_heat_maps(bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most = 0, 0

    class Slow:
        def write(self, files: list[str], *_: object) -> list[str]:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            time.sleep(0.05)
            busy -= 1
            return files

    monkeypatch.setattr("ich_ray.bundle.prediction.EVALUATION_BATCH", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        rows = list(Predictor(load_bundle(bundle), "f2", Slow()).stream(list_inputs([scans])))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)
    assert len(rows) == 6
    assert most == 1


def test_heat_maps_stand_beside_the_slice(bundle: Path, scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    command = ["predict", str(bundle), str(scans), "--out", str(tmp_path / "out.json"), "--heatmaps", str(folder)]
    assert cli.call(command) == 0
    rows = json.loads((tmp_path / "out.json").read_text())
    named = [tmp_path / "out.json", *folder.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in named} == {0o600}, "they carry names of files"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(row["heatmap"] for row in rows) == sorted(str(path) for path in folder.iterdir())
    assert len({row["heatmap"] for row in rows}) == len(rows) == 12
    picture = np.asarray(Image.open(rows[0]["heatmap"]))
    assert picture.shape == (256, 512, 3)
    left, right = picture[:, :256], picture[:, 256:]
    assert (left[..., 0] == left[..., 2]).all(), "the slice itself is grey"
    assert (right != left).any() == (rows[0]["probability"] > 0)


def test_the_heat_lies_where_the_bleeding_is(bundle: Path, tmp_path: Path) -> None:
    """The brighter square that the network learned to find; over it, twice the heat of elsewhere."""
    loaded = load_bundle(bundle)
    images = np.random.default_rng(0).normal(90, 30, (40, 3, 32, 32))
    images[:, :2, 8:16, 16:24] += 45
    trainable = [weight.requires_grad for weight in loaded.network.parameters()]
    heat = grad_cam(loaded, images.clip(0, 255).astype(np.uint8))
    assert heat.shape == (40, 32, 32)
    assert (heat.min(), heat.max()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    inside = heat[:, 8:16, 16:24].mean()
    heat[:, 8:16, 16:24] = np.nan
    assert inside > 2 * np.nanmean(heat)
    assert [weight.requires_grad for weight in loaded.network.parameters()] == trainable


def test_the_picture_is_of_the_slice_and_not_of_its_neighbors(bundle: Path, tmp_path: Path) -> None:
    card = load_bundle(bundle).card
    drawn = card.parameters.model_copy(update={"neighbors": 2, "neighbor_windows": "first"})
    seeing = Bundle(build_network(drawn, card.image_shape), card.model_copy(update={"parameters": drawn}))
    levels = torch.tensor([10, 20, 30, 40, 50, 60, 70], dtype=torch.uint8)  # the slice itself: 30, 40 and 50
    images = levels.view(1, 7, 1, 1).expand(1, *seeing.card.input_shape).numpy()
    (path,) = HeatMaps(seeing, locate(tmp_path)).write(["a.dcm"], images, np.array([0.9]), 0.5)
    picture = np.asarray(Image.open(path))
    assert (picture[:, : picture.shape[1] // 2] == 30 + 10 * brain_channel(card.windows)).all()


def test_the_overlay_by_hand() -> None:
    grey, heat = np.array([[100, 100]], np.uint8), np.array([[0, 1]], np.float32)
    assert overlay(grey, heat).tolist() == [[[100, 100, 100], [201, 87, 35]]]
    assert [strength(probability, 0.2) for probability in (0.05, 0.2, 0.9)] == [0.25, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [0, 48])
@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "efficientnet_b0", "convnext_tiny"])
def test_every_family_has_heat_at_the_size_of_the_slice(bundle: Path, architecture: str, resolution: int) -> None:
    parameters = Hyperparameters(architecture=architecture, unfreeze_from="head", resolution=resolution)
    card = load_bundle(bundle).card.model_copy(
        update={"architecture": architecture, "parameters": parameters, "image_shape": (3, 64, 64)}
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    heat = grad_cam(Bundle(build_network(parameters, (3, 64, 64)), card), images)
    assert heat.shape == (2, 64, 64)
    assert np.isfinite(heat).all()


def of_timm(bundle: Path, name: str, **more: object) -> Bundle:
    """A bundle of one of timm's networks, not trained, of 64 pixels."""
    parameters = Hyperparameters.model_validate({"architecture": f"timm/{name}", **more})
    told = {"architecture": parameters.architecture, "parameters": parameters, "image_shape": (3, 64, 64), "size": 64}
    card = load_bundle(bundle).card.model_copy(update=told)
    torch.manual_seed(0)
    return Bundle(build_network(parameters, (3, 64, 64)).eval(), card)


@pytest.mark.parametrize(
    ("name", "pooled"), [("test_resnet", "layer4"), ("test_efficientnet", "bn2"), ("test_convnext", "stages")]
)
def test_heat_of_timm_is_the_map_weighted_by_its_gradient(bundle: Path, name: str, pooled: str) -> None:
    loaded, images = of_timm(bundle, name), np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    maps: list[torch.Tensor] = []
    hook = loaded.network.body.get_submodule(pooled).register_forward_hook(lambda _, __, out: maps.append(out))
    (slope,) = torch.autograd.grad(loaded.network(torch.from_numpy(images)).sum(), maps)
    hook.remove()
    heat = (slope.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True).relu()
    heat = torch.nn.functional.interpolate(heat, (64, 64), mode="bilinear")[:, 0].detach()
    expected = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert expected.amax() == 1
    np.testing.assert_allclose(grad_cam(loaded, images), expected.numpy(), atol=1e-5)


def test_heat_of_tokens_is_refused_before_anything_is_read(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--heatmaps: a network must end in a map of places, .* got timm/test_vit, "):
        HeatMaps(of_timm(bundle, "test_vit"), locate(tmp_path / "maps"))
    assert not (tmp_path / "maps").exists()


def test_what_cannot_be_done_is_said_before_anything_is_read(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--out out.xlsx: the suffix must be one of .csv, .json, .parquet"):
        predict(bundle, [scans], tmp_path / "out.xlsx")
    (tmp_path / "scans.csv").mkdir()
    monkeypatch.setattr(batch_predict, "load_bundle", None)
    for out, heatmaps, says in (
        ("scans.csv", None, r"--out .*scans\.csv: must be a file, got a folder; name a file in it"),
        (
            "labels.csv/out.csv",
            None,
            r"--out .*labels\.csv: must be a folder, got a file at .*labels\.csv; name another",
        ),
        ("/proc/x.csv", None, r"--out /proc: must be a place where this user may write, got .*; choose another"),
        ("out.csv", "labels.csv", r"--heatmaps .*labels\.csv: must be a folder, got a file"),
        ("out.csv", "/proc/maps", r"--heatmaps /proc/maps: must be a "),
    ):
        with pytest.raises(ConfigError, match=says):
            predict(bundle, [scans], tmp_path / out, heatmaps=heatmaps and tmp_path / heatmaps)
    (tmp_path / "scans.csv").rmdir()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ConfigError, match=r"captum must be installed.*ich_ray\[heatmaps\]"):
        predict(bundle, [scans], tmp_path / "out.csv", heatmaps=tmp_path / "maps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "scans"]


def test_a_run_that_fails_leaves_no_table(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Bundle, images: np.ndarray, _: object = None) -> np.ndarray:
        raise RuntimeError

    monkeypatch.setattr(Bundle, "label_logits", broken)
    (tmp_path / "tables").mkdir()
    for suffix in ("csv", "json", "parquet"):
        with pytest.raises(RuntimeError):
            predict(bundle, [scans], tmp_path / "tables" / f"out.{suffix}")
    assert list((tmp_path / "tables").iterdir()) == []


def test_batches_are_one_batch_long_whatever_the_folder(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ich_ray.bundle.prediction.EVALUATION_BATCH", 5)
    seen: list[int] = []
    plain = Bundle.label_logits

    def spy(self: Bundle, images: np.ndarray, _: object = None) -> np.ndarray:
        seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(Bundle, "label_logits", spy)
    predict(bundle, [scans], tmp_path / "out.parquet")
    assert seen == [5, 5, 2]
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 12


@pytest.mark.slow
def test_ray_data_gives_the_same_rows_in_the_same_order(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(scans, scans.parent / "labels.csv")
    (scans / "ID_000.dcm").write_bytes((scans / "ID_000.dcm").read_bytes()[132:])
    here = predict(bundle, [scans], tmp_path / "here.parquet", without_preamble=True)
    monkeypatch.setattr(batch_predict, "_WORTH_RAY", 1)
    monkeypatch.setattr("ich_ray.bundle.prediction.EVALUATION_BATCH", 4)
    there = predict(bundle, [scans], tmp_path / "there.parquet", heatmaps=tmp_path / "maps", without_preamble=True)
    assert there == here
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("here", "there")]
    one, other = (table.drop(["probability", "heatmap"]) for table in tables)
    assert one.equals(other)
    probabilities = [table["probability"].to_pylist() for table in tables]
    assert probabilities[1] == [None if value is None else pytest.approx(value, abs=1e-6) for value in probabilities[0]]
    assert len(list((tmp_path / "maps").iterdir())) == here.cases


def test_inputs_are_listed_once_and_in_order(scans: Path, tmp_path: Path) -> None:
    (scans / ".hidden").write_text("0")
    (tmp_path / "link").symlink_to(scans)
    names = [f"ID_{patient:02d}{number}.dcm" for patient in range(6) for number in range(2)]
    one, *others = [str(scans / name) for name in names]
    assert list_inputs([scans, scans / "ID_010.dcm", scans, tmp_path / "link", scans / ".." / "scans"]) == [
        Input(file) for file in (one, *others)
    ]
    assert [given.file for given in list_inputs([others[3], scans])] == [others[3], one, *others[:3], *others[4:]]


def test_what_is_given_twice_counts_once(
    bundle: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "copy.dcm").write_bytes((scans / "ID_000.dcm").read_bytes())
    progress.show()
    try:
        found = predict(bundle, [scans, scans / "ID_000.dcm", scans], tmp_path / "out.json", by="study")
    finally:
        progress.show(False)
    assert found.inputs == 13
    said = capsys.readouterr().err
    assert "14 of 27 files were given before and are read once" in said
    assert "1 files repeat a slice of their study and are not counted again" in said
    assert [row["slices"] for row in json.loads((tmp_path / "out.json").read_text())] == [2] * 6
