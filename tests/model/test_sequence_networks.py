from __future__ import annotations

import math

import pytest
import torch

from ich_ray.model import sequence_networks
from ich_ray.model.sequence_networks import SEQUENCE_MODELS, SequenceNetwork, build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters

MODELS = ["bigru", "bilstm", "transformer", "dilated_conv"]
FEATURES, LABELS = 6, 2


def network(model: str, seed: int = 0, **more: object) -> SequenceNetwork:
    torch.manual_seed(seed)
    drawn = SequenceParameters.model_validate({"model": model, "layers": 2, "projection": 16, "hidden": 8, **more})
    return build_sequence_network(drawn, FEATURES, LABELS).eval()


def series(places: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(places, FEATURES), 5.0 * torch.arange(places) - 40


def padded(
    parts: list[tuple[torch.Tensor, torch.Tensor]], longest: int, filling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features = torch.full((len(parts), longest, FEATURES), filling)
    places, mask = torch.full((len(parts), longest), filling), torch.zeros(len(parts), longest, dtype=torch.bool)
    for row, (values, where) in enumerate(parts):
        features[row, : len(values)], places[row, : len(values)], mask[row, : len(values)] = values, where, True
    return features, places, mask


@pytest.mark.parametrize("position", ["none", "ordinal", "mm"])
@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_padding_changes_nothing(model: str, deltas: bool, position: str) -> None:
    net, parts = network(model, deltas=deltas, position=position), [series(n, seed=n) for n in (1, 2, 5, 9)]
    with torch.inference_mode():
        for filling in (0.0, 1e4, math.nan):
            slices, study = net(*padded(parts, 14, filling))
            for row, (features, places) in enumerate(parts):
                alone, of_study = net(features[None], places[None])
                assert torch.allclose(slices[row, : len(features)], alone[0], rtol=0, atol=1e-6)
                assert torch.allclose(study[row], of_study[0], rtol=0, atol=1e-6)
                assert torch.isfinite(alone).all()


@pytest.mark.parametrize("model", MODELS)
def test_padding_gives_no_gradient(model: str) -> None:
    net = network(model, deltas=True, position="mm", dropout=0.0, noise=0.0, slice_dropout=0.0).train()
    gradients = []
    for longest in (5, 12):
        net.zero_grad()
        features, places, mask = padded([series(5), series(3)], longest, math.nan)
        slices, study = net(features, places, mask)
        (slices[mask].square().sum() + study.square().sum()).backward()
        gradients.append([weight.grad.clone() for weight in net.parameters()])  # type: ignore[union-attr]
    for narrow, wide in zip(*gradients, strict=True):
        assert torch.isfinite(wide).all()
        assert torch.allclose(narrow, wide, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_place_hears_of_its_neighbors_on_both_sides(model: str) -> None:
    net, (features, places) = network(model, position="none"), series(5)
    changed = features.clone()
    changed[2] += 1
    with torch.inference_mode():
        before, after = (net(values[None], places[None])[0][0] for values in (features, changed))
    assert ((before - after).abs().amax(1) > 1e-6).tolist() == [True] * 5


def test_series_of_a_batch_do_not_hear_of_each_other() -> None:
    net = network("transformer")
    with torch.inference_mode():
        first, second = (net(*padded([series(4), series(4, seed=n)], 4, 0.0))[0][0] for n in (2, 3))
    assert torch.allclose(first, second, rtol=0, atol=1e-6)


def test_attention_is_of_each_label_and_adds_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, softmax = [], torch.Tensor.softmax

    def spy(scores: torch.Tensor, dim: int) -> torch.Tensor:
        shares.append(softmax(scores, dim))
        return shares[-1]

    monkeypatch.setattr(torch.Tensor, "softmax", spy)
    with torch.inference_mode():
        network("bigru")(*padded([series(3), series(6)], 8, math.nan))
    (attention,) = shares
    assert attention.shape == (2, 8, LABELS)
    assert torch.allclose(attention.sum(1), torch.ones(2, LABELS))
    assert attention[0, 3:].abs().max() == 0
    assert not torch.allclose(attention[:, :, 0], attention[:, :, 1])


def test_differences_are_to_the_places_before_and_after() -> None:
    net = network("bigru", deltas=True, position="none")
    inputs = net._inputs(*padded([(torch.tensor([[1.0] * 6, [3.0] * 6, [2.0] * 6]), torch.zeros(3))], 4, math.nan))
    assert inputs[0, :3, ::FEATURES].tolist() == [[1, 0, -2], [3, 2, 1], [2, -1, 0]]


@pytest.mark.parametrize(
    ("position", "told"), [("ordinal", [-1 / 15, 0, 1 / 15]), ("mm", [-20 / 75, 0, 20 / 75]), ("none", [])]
)
def test_a_place_is_told_from_the_middle_of_its_series(position: str, told: list[float]) -> None:
    net = network("bigru", position=position)
    inputs = net._inputs(torch.zeros(1, 3, FEATURES), torch.tensor([[100.0, 120.0, 140.0]]), None)
    assert inputs[0, :, FEATURES : FEATURES + 1].flatten().tolist() == pytest.approx(told)


@pytest.mark.parametrize("position", ["ordinal", "mm"])
def test_a_gap_is_told_in_mm_alone(position: str) -> None:
    net, (features, _) = network("transformer", position=position), series(4)
    even, gaping = torch.tensor([[0.0, 5, 10, 15]]), torch.tensor([[0.0, 5, 40, 45]])
    with torch.inference_mode():
        same = torch.equal(net(features[None], even)[0], net(features[None], gaping)[0])
    assert same == (position == "ordinal")


@pytest.mark.parametrize("position", ["none", "ordinal", "mm"])
def test_a_place_that_is_not_known_gives_finite_logits(position: str) -> None:
    with torch.inference_mode():
        slices, study = network("bilstm", position=position)(torch.ones(1, 1, FEATURES), torch.tensor([[math.nan]]))
    assert torch.isfinite(slices).all()
    assert torch.isfinite(study).all()


def test_normalization_lies_in_the_network_and_travels_with_its_tensors() -> None:
    net, (features, places) = network("dilated_conv"), series(4)
    other = network("dilated_conv", seed=5)
    net.normalize_by(torch.full((FEATURES,), 2.0), torch.tensor([3.0, 1, 1, 1, 1, 0.0]))
    assert net.std.tolist() == [3, 1, 1, 1, 1, 1]
    other.load_state_dict(net.state_dict())
    plain = network("dilated_conv")
    with torch.inference_mode():
        expected = plain(features[None], places[None])[0]
        scaled = features * net.std + 2
        assert torch.allclose(other(scaled[None], places[None])[0], expected, atol=1e-5)


def test_a_feature_far_beyond_those_of_training_is_cut() -> None:
    net = network("bigru")
    with torch.inference_mode():
        far, farther = (net(torch.full((1, 2, FEATURES), value), torch.zeros(1, 2))[0] for value in (10.0, 1e6))
    assert torch.equal(far, farther)


def test_noise_and_left_out_places_are_of_training_alone() -> None:
    net, (features, places) = network("bigru", noise=0.5, slice_dropout=0.5, dropout=0.0), series(8)
    first, second = (net(features[None], places[None])[0] for _ in range(2))
    assert torch.equal(first, second)
    net.train()
    assert not torch.equal(net(features[None], places[None])[0], first)


def test_a_model_from_outside_is_used_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pass(torch.nn.Module):
        def __init__(self, parameters: SequenceParameters, numbers: int) -> None:
            super().__init__()
            self.width = numbers

        def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return inputs

    monkeypatch.setattr(SEQUENCE_MODELS, "registered", {})
    SEQUENCE_MODELS.register("pass", Pass)
    slices, study = network("pass")(torch.zeros(2, 3, FEATURES), torch.zeros(2, 3))
    assert (slices.shape, study.shape) == ((2, 3, LABELS), (2, LABELS))


def test_a_long_series_is_attended_to_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    net, parts = network("transformer", position="ordinal"), [series(n, seed=n) for n in (3, 8, 9, 21, 40)]
    with torch.inference_mode():
        whole, _ = net(*padded(parts, 45, math.nan))
        monkeypatch.setattr(sequence_networks, "LONGEST_ATTENTION", 8)
        slices, study = net(*padded(parts, 45, math.nan))
        for row, (features, places) in enumerate(parts):
            alone, of_study = net(*padded([(features, places)], len(features), 0.0))
            assert torch.allclose(slices[row, : len(features)], alone[0], rtol=0, atol=1e-6)
            assert torch.allclose(study[row], of_study[0], rtol=0, atol=1e-6)
        assert torch.allclose(slices[1, :8], whole[1, :8], rtol=0, atol=1e-6)
        changed, (features, places) = padded(parts, 45, math.nan), parts[4]
        changed[0][4, 30] += 1
        moved = (net(*changed)[0][4, :40] - slices[4, :40]).abs().amax(1) > 1e-6
    assert torch.nonzero(moved).flatten().tolist() == [*range(28, 36)]  # of windows from 26 and 30, the middle halves


def test_windows_pass_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_networks, "LONGEST_ATTENTION", 8)
    net = network("transformer").train()
    features, places, mask = padded([series(20), series(4)], 22, math.nan)
    slices, study = net(features, places, mask)
    (slices[mask].sum() + study.sum()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in net.parameters() if weight.grad is not None)
    assert net.project.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
