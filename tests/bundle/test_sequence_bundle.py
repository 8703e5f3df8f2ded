"""A bundle with a sequence model: saved and loaded, refused where it is damaged, said of in its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray import cli
from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate_site
from ich_ray.assess.recalibration import recalibrate
from ich_ray.bundle import series_model, weights_file
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.card import LIMITATIONS, Card
from ich_ray.bundle.sequence_file import read_sequence
from ich_ray.bundle.sequence_note import Blend
from ich_ray.bundle.sequence_scorer import SequenceScorer
from ich_ray.bundle.study_calibration import StudyCalibration, StudyScaling
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.storage import locate, read_json, sha256, write_json
from tests.bundle.test_predict_series import make_bundle
from tests.prepared import make_dataset
from tests.searched import make_bundle as trained_bundle
from tests.searched import make_search
from tests.sequence_bundles import add_sequence, with_sequence

STUDIES = StudyScaling(
    studies=20, positives=10, patients=10, scaled_by="own", temperature=1.0, log_loss_before=0.7, log_loss_after=0.6
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_sequence(make_bundle(tmp_path_factory.mktemp("made"), labels="all"))


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_it_comes_back_as_it_was_without_pickle(bundle: Path, tmp_path: Path) -> None:
    name = f"sequence-{sha256(_file(bundle).read_bytes())[:8]}.safetensors"
    assert sorted(path.name for path in bundle.iterdir()) == ["card.json", "model.safetensors", name]
    one = load_bundle(bundle)
    one.save(tmp_path / "other")
    other = load_bundle(tmp_path / "other")
    assert other.card == one.card
    images = np.random.default_rng(0).integers(0, 256, (5, *one.card.input_shape), np.uint8)
    assert np.array_equal(one.label_logits(images), other.label_logits(images))
    data = _bytes(bundle)
    tensors = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F32"}
    assert {"mean", "std"} <= {*tensors}


def test_a_bundle_that_takes_its_place_has_none(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    Bundle(loaded.network, loaded.card.model_copy(update={"sequence": None})).save(bundle)
    assert [*bundle.glob("sequence*")] == []
    assert load_bundle(bundle).sequence is None
    with pytest.raises(ConfigError, match="a sequence model must be there, got none"):
        load_bundle(bundle).seen(np.zeros((1, *loaded.card.input_shape), np.uint8))
    with pytest.raises(IchRayError, match="a sequence model must be given where the card has one"):
        Bundle(loaded.network, loaded.card)


def test_a_kill_between_the_weights_and_the_card_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, other = load_bundle(bundle), load_bundle(bundle)
    assert other.sequence is not None
    with torch.no_grad():
        next(other.sequence.parameters()).add_(1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ich_ray.bundle.bundle.write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            other.save(bundle)
    assert len([*bundle.glob("sequence*")]) == 2
    images = np.random.default_rng(0).integers(0, 256, (5, *before.card.input_shape), np.uint8)
    assert np.array_equal(load_bundle(bundle).label_logits(images), before.label_logits(images))
    other.save(bundle)
    assert [*bundle.glob("sequence*")] == [_file(bundle)]
    assert np.array_equal(load_bundle(bundle).label_logits(images), other.label_logits(images))


def test_a_file_that_is_not_named_by_its_content_is_read_and_replaced(bundle: Path) -> None:
    before = load_bundle(bundle)
    _file(bundle).rename(bundle / "sequence.safetensors")
    _card(bundle, lambda note: note["weights"].update(file="sequence.safetensors"))
    images = np.random.default_rng(0).integers(0, 256, (5, *before.card.input_shape), np.uint8)
    assert np.array_equal(load_bundle(bundle).label_logits(images), before.label_logits(images))
    load_bundle(bundle).save(bundle)
    assert [*bundle.glob("sequence*")] == [_file(bundle)]
    assert load_bundle(bundle).card == before.card


def test_roles_drawn_by_slice_are_refused_before_an_opening_is_counted(bundle: Path, tmp_path: Path) -> None:
    assert load_bundle(bundle).card.operating_points, "so that it can be evaluated"
    site = make_dataset(tmp_path / "site", patients=40, seed=5)
    write_json(site.files.manifest, {**read_json(site.files.manifest), "split": "slice"})
    with pytest.raises(ConfigError, match="a bundle with a sequence model needs roles drawn by patient, got --split s"):
        evaluate_site(bundle, site.files.root, tmp_path / "figures")
    assert load_bundle(bundle).card.site_openings == {}
    with pytest.raises(ConfigError, match="a bundle with a sequence model needs roles drawn by patient, got --split s"):
        recalibrate(bundle, site.files.root, tmp_path / "new")


def test_what_was_fitted_without_it_is_taken_out_and_openings_stay(tmp_path: Path) -> None:
    plain = load_bundle(make_bundle(tmp_path / "plain"))
    held: dict[str, Any] = {"openings": 1, "temperature": 2.0, "test": {"a": 1}, "site_openings": {"a" * 32: 2}}
    held["studies"] = StudyCalibration(method="platt", score="maximum", unknown=0, labels={"any": STUDIES})
    plain.card = plain.card.model_copy(update={**held, "limitations": ("It leaks.", *LIMITATIONS)})
    card = with_sequence(plain).card
    assert (card.openings, card.site_openings) == (1, {"a" * 32: 2})
    assert (card.temperature, card.operating_points, card.test, card.calibrations) == (1.0, {}, None, ())
    assert card.studies is None
    assert card.limitations[0] == "It leaks."
    assert card.limitations[1].startswith("It sees each slice, and weighs features of all slices of one series: a lone")
    assert card.limitations[2:] == LIMITATIONS[1:]


def test_the_checklist_says_what_it_does(bundle: Path) -> None:
    found = load_bundle(bundle).card.checklist
    assert (
        "; bigru over 8 features of each slice of a series, in order along their normal, to a logit of each slice and "
        "one of the series; logit of `any` = 0.5 x the network's + 2 x the sequence model's +0.5, of other labels "
        "likewise; probability"
    ) in found["Model, its input and output"]
    assert found["Selection of the model"].endswith(
        "sequence model: trial 3 of 8 by roc_auc on the validation patients"
    )
    assert found["Explanations"].startswith("Grad-CAM heat maps of the network alone")
    assert found["Outcome that is predicted"].endswith(", in its series, and of the series")


def test_a_card_without_one_says_nothing_of_it(tmp_path: Path) -> None:
    card = load_bundle(make_bundle(tmp_path / "bundle")).card
    assert not [text for text in card.checklist.values() if "sequence" in text or "series, and" in text]


def _card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = read_json(locate(folder / "card.json"))
    change(content["sequence"])
    write_json(locate(folder / "card.json"), content)


def _file(folder: Path) -> Path:
    card = Card.model_validate(read_json(locate(folder / "card.json")))
    assert card.sequence is not None
    return folder / card.sequence.weights.file


def _put(folder: Path, data: bytes) -> None:
    _file(folder).write_bytes(data)
    _card(folder, lambda note: note["weights"].update(sha256=sha256(data)))


def _bytes(folder: Path) -> bytes:
    return _file(folder).read_bytes()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (lambda at: _file(at).unlink(), "the weights of the card must be there, got none"),
    "another file": (lambda at: _file(at).write_bytes(_bytes(at)[:-1] + b"\7"), "SHA-256 must be"),
    "shorter": (lambda at: _put(at, _bytes(at)[:-4]), "must be the weights of its card, got"),
    "no header": (lambda at: _put(at, b"\xff" * 64), "must be the weights of its card, got a header of"),
    "a number that is none": (lambda at: _put(at, _bytes(at)[:-4] + b"\0\0\xc0\x7f"), "weights must be finite, got"),
    "a pipe": (lambda at: _pipe(_file(at)), "must be a file, got something else"),
    "the network's": (lambda at: _put(at, (at / "model.safetensors").read_bytes()), "got another tensor|got no tensor"),
    "wider": (lambda at: _card(at, lambda n: n["parameters"].update(hidden=4096)), "must be the weights of its card"),
    "huge": (lambda at: _card(at, lambda n: n.update(features=2**16)), "must be the weights of its card"),
    "deeper": (lambda at: _card(at, lambda n: n["parameters"].update(layers=8)), "must be the weights of its card"),
    "too many features": (lambda at: _card(at, lambda n: n.update(features=2**40)), "must match its format"),
    "an unknown model": (
        lambda at: _card(at, lambda n: n["parameters"].update(model="os.system")),
        "must match its fo",
    ),
    "another field": (lambda at: _card(at, lambda n: n.update(module="os")), "must match its format"),
    "a path": (lambda at: _card(at, lambda n: n["weights"].update(file="../model.safetensors")), "must match its form"),
    "no blend of a label": (lambda at: _card(at, lambda n: n["blend"].pop("subdural")), "sequence must blend"),
    "no number": (lambda at: _card(at, lambda n: n["blend"]["any"].update(own=None)), "must match its format"),
}


def _pipe(path: Path) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_or_hostile_is_refused_in_a_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    damage, said = BROKEN[name]
    damage(bundle)
    with pytest.raises(IntegrityError, match=said):
        load_bundle(bundle)
    (tmp_path / "a.dcm").write_text("")
    out = tmp_path / "out.csv"
    assert cli.call(["predict", str(bundle), str(tmp_path / "a.dcm"), "--out", str(out)]) == 5
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert not out.exists()


def test_nothing_is_allocated_before_the_header_is_checked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _card(bundle, lambda note: note["parameters"].update(hidden=4096, layers=8))
    monkeypatch.setattr(weights_file, "unpack", lambda *_: pytest.fail("memory was taken"))
    card = Card.model_validate(read_json(locate(bundle / "card.json")))
    with pytest.raises(IntegrityError, match="must be the weights of its card"):
        read_sequence(locate(bundle), card)


def test_features_of_another_network_are_refused(tmp_path: Path) -> None:
    """Its own file and card fit each other, and not the network."""
    loaded = load_bundle(add_sequence(make_bundle(tmp_path / "bundle")))
    note = loaded.card.sequence
    assert note is not None
    other = loaded.card.model_copy(update={"sequence": note.model_copy(update={"features": 5})})
    network = build_sequence_network(note.parameters, 5, 1)
    with pytest.raises(ConfigError, match="sequence: features must be as many as 8 of the network, got 5"):
        Bundle(loaded.network, other, network)
    spoiled = load_bundle(tmp_path / "bundle")
    spoiled.sequence, spoiled.card = network, other
    spoiled.save(tmp_path / "bundle")
    with pytest.raises(IntegrityError, match=r"card\.json: sequence: features must be as many as 8"):
        load_bundle(tmp_path / "bundle")


def test_recalibration_carries_it_along_and_fits_blended_logits(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset")
    files = make_search(tmp_path / "search", dataset)
    trained_bundle(files, dataset)
    without = calibrate(files.root)
    add_sequence(Path(str(files.bundle)))
    blended = calibrate(files.root)
    assert blended.temperature != without.temperature
    make_dataset(tmp_path / "site", patients=120, seed=7)
    _other_patients(tmp_path / "site")
    recalibrate(files.bundle, tmp_path / "site", tmp_path / "local")
    one, other = load_bundle(files.bundle), load_bundle(tmp_path / "local")
    assert one.card.sequence is not None
    assert other.card.sequence is not None
    here, there = one.card.sequence.own_scaling, other.card.sequence.own_scaling
    assert here is not None
    assert there is not None
    assert here.prior_shift == there.prior_shift, "of the training"
    assert there.bias != here.bias == 0.0, "the site's by Platt's method"
    assert other.card.sequence == one.card.sequence.model_copy(update={"own_scaling": there})
    assert _bytes(tmp_path / "local") == _bytes(Path(str(files.bundle)))
    assert other.card.temperature != one.card.temperature


def _other_patients(folder: Path) -> PreparedDataset:
    """The same slices of patients whom nobody knows."""
    import pyarrow.parquet as pq

    dataset = PreparedDataset.open(folder)
    table = dataset.slices
    names = [f"site-{name}" for name in table["patient"].to_pylist()]
    pq.write_table(
        table.set_column(table.schema.get_field_index("patient"), "patient", [names]), str(dataset.files.slices)
    )
    content = read_json(dataset.files.manifest)
    content["slices_sha256"] = sha256(dataset.files.slices)
    write_json(dataset.files.manifest, content)
    return PreparedDataset.open(folder)


@pytest.fixture
def scorer() -> SequenceScorer:
    torch.manual_seed(0)
    network = build_sequence_network(SequenceParameters(hidden=4, projection=4), 3, 1)
    return SequenceScorer(network, [Blend(own=0.5, sequence=2.0, bias=-1.0)], torch.device("cpu"))


def test_slices_at_one_place_share_a_logit_and_unplaced_ones_are_series(scorer: SequenceScorer) -> None:
    rng = np.random.default_rng(0)
    own, features = rng.normal(size=(6, 1)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    series, places_mm = np.array([0, 0, 0, 0, 1, -1]), np.array([5.0, 0, 5.001, np.nan, 3, np.nan])
    found = scorer(own, features, series, places_mm)
    of_sequence = (found.logits + 1 - 0.5 * own) / 2
    assert of_sequence[0] == pytest.approx(of_sequence[2], abs=1e-6)
    pair = np.stack([features[1].astype(np.float16), features[[0, 2]].astype(np.float16).astype(np.float32).mean(0)])
    with torch.inference_mode():
        slices, study = scorer.network(torch.from_numpy(pair)[None], torch.tensor([[0.0, 5.0005]]))
        alone, study_alone = scorer.network(torch.from_numpy(features[3:4].astype(np.float16))[None], torch.zeros(1, 1))
    assert of_sequence[[1, 0], 0] == pytest.approx(slices[0, :, 0].numpy(), abs=1e-5)
    assert of_sequence[3, 0] == pytest.approx(float(alone[0, 0, 0]), abs=1e-5)
    highest = max(float(study[0, 0]), float(study_alone[0, 0]))
    assert found.series[:4, 0] == pytest.approx(highest, abs=1e-5)


def test_many_series_at_once_are_scored_as_one_by_one(scorer: SequenceScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    series = np.repeat(np.arange(20), rng.integers(1, 9, 20))
    order = rng.permutation(len(series))
    own, features = rng.normal(size=(len(series), 1)), rng.normal(size=(len(series), 3))
    places_mm = rng.permutation(len(series)).astype(float)
    given = own.astype(np.float32), features.astype(np.float32), series, places_mm
    whole = scorer(*given)
    monkeypatch.setattr("ich_ray.training.sequence_batches.MOST_PLACES", 1)
    np.testing.assert_allclose(scorer(*given).logits, whole.logits, atol=1e-6)
    np.testing.assert_allclose(scorer(*(one[order] for one in given)).logits, whole.logits[order], atol=1e-6)
    reversed_ = scorer(*given[:3], -places_mm)
    assert np.abs(reversed_.logits - whole.logits).max() > 1e-4


def test_what_is_asked_again_is_not_computed_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate` asks for logits of slices, of studies and of the network alone."""
    loaded = load_bundle(made)
    slices = make_dataset(tmp_path / "dataset", size=32).role("test")
    first = loaded.slice_label_logits(slices)
    monkeypatch.setattr(series_model, "predict_features", lambda *_: pytest.fail("seen again"))
    assert np.array_equal(loaded.slice_label_logits(slices), first)
    loaded.network_label_logits(slices)
    loaded.study_label_logits(slices)
