from __future__ import annotations

import numpy as np
import pytest
import torch

from ich_ray.data.series_order import ordered_series
from ich_ray.model.sequence_networks import SequenceNetwork, build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.training.sequence_batches import PlaceFeatures, sequence_logits, short_parts

MODELS = ["bigru", "bilstm", "transformer", "dilated_conv"]
NAN = float("nan")
CASES = {
    "a series of one slice": ([0], [3.0]),
    "two slices": ([0, 0], [5.0, 0.0]),
    "duplicate positions": ([0, 0, 0, 0], [0.0, 5.0, 5.0, 10.0]),
    "a gap": ([0, 0, 0, 0], [0.0, 5.0, 40.0, 45.0]),
    "two series interleaved": ([0, 1, 0, 1, 0], [0.0, 0.0, 5.0, 7.0, 10.0]),
    "a place that is not known": ([0, 0, 0], [0.0, NAN, 5.0]),
    "no series": ([-1, -1], [0.0, 5.0]),
}


def network(model: str) -> SequenceNetwork:
    torch.manual_seed(0)
    drawn = SequenceParameters(model=model, projection=16, hidden=8, layers=2, deltas=True, position="mm")
    return build_sequence_network(drawn, 5, 2).eval()


def features(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 5)).astype(np.float16)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_a_slice_has_the_same_logit_whatever_the_order_of_rows(case: str, model: str) -> None:
    series, places = (np.array(column) for column in CASES[case])
    rows = features(len(series))
    found = sequence_logits(network(model), rows, ordered_series(series, places))
    backwards = sequence_logits(network(model), rows[::-1], ordered_series(series[::-1], places[::-1]))
    assert np.isfinite(found.slices).all()
    assert np.allclose(found.slices, backwards.slices[::-1], rtol=0, atol=1e-6)
    assert np.allclose(np.sort(found.study, 0), np.sort(backwards.study, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_series_is_answered_as_if_it_were_alone(case: str) -> None:
    series, places = (np.array(column) for column in CASES[case])
    rows, order = features(len(series)), ordered_series(series, places)
    found = sequence_logits(network("bigru"), rows, order)
    for number in range(len(order)):
        own = order.series == number
        alone = sequence_logits(network("bigru"), rows[own], ordered_series(series[own], places[own]))
        assert np.allclose(found.slices[own], alone.slices, rtol=0, atol=1e-6)
        assert np.allclose(found.study[number], alone.study[0], rtol=0, atol=1e-6)


def test_slices_at_one_place_are_averaged_whatever_the_order_of_rows() -> None:
    found = ordered_series(np.zeros(3, int), np.array([5.0, 0, 5]))
    values = np.array([[1, 2], [3, 4], [5, 8]], np.float16)
    assert PlaceFeatures(values, found, torch.device("cpu")).gathered(np.arange(2)).tolist() == [[3, 4], [3, 5]]
    random = np.random.default_rng(0)
    series, places, shuffled = random.integers(0, 5, 60), random.integers(0, 9, 60) * 5.0, random.permutation(60)
    rows = random.normal(size=(60, 3)).astype(np.float16)
    first, second = ordered_series(series, places), ordered_series(series[shuffled], places[shuffled])
    of_places = np.arange(len(first.places_mm))
    assert np.array_equal(
        PlaceFeatures(rows, first, torch.device("cpu")).gathered(of_places),
        PlaceFeatures(rows[shuffled], second, torch.device("cpu")).gathered(of_places),
    )


def test_slices_at_one_place_share_the_logit_of_their_mean() -> None:
    rows = features(4)
    found = sequence_logits(network("transformer"), rows, ordered_series(np.zeros(4, int), np.array([0.0, 5, 5, 10])))
    mean = np.stack([rows[0], rows[1:3].astype(np.float32).mean(0), rows[3]])
    once = sequence_logits(network("transformer"), mean, ordered_series(np.zeros(3, int), np.array([0.0, 5, 10])))
    assert np.array_equal(found.slices[1], found.slices[2])
    assert np.allclose(found.slices[[0, 1, 3]], once.slices, rtol=0, atol=1e-6)


def test_parts_hold_series_of_about_one_length() -> None:
    lengths = np.array([30, 1, 4000, 20_000, 2, 30, 5000])
    parts = [part.tolist() for part in short_parts(np.arange(7), lengths)]
    assert parts == [[1, 4, 0, 5], [2], [6], [3]]
    assert [part.tolist() for part in short_parts(np.array([5, 4, 5]), lengths)] == [[4, 5, 5]]
    assert list(short_parts(np.arange(0), lengths)) == []


def test_moments_are_of_places_and_not_of_slices() -> None:
    rows = np.array([[0, 1], [2, 1], [4, 1]], np.float16)
    places = PlaceFeatures(rows, ordered_series(np.zeros(3, int), np.array([0.0, 5, 5])), torch.device("cpu"))
    mean, deviation = places.moments()
    assert mean.tolist() == [1.5, 1]
    assert deviation.tolist() == [1.5, 0]


def test_no_slice_has_no_logit() -> None:
    nothing = ordered_series(np.empty(0, np.int64), np.empty(0))
    found = sequence_logits(network("bilstm"), np.empty((0, 5), np.float16), nothing)
    assert (found.slices.shape, found.study.shape) == ((0, 2), (0, 2))


@pytest.mark.parametrize("model", MODELS)
def test_half_precision_says_nearly_the_same(model: str) -> None:
    rows, order = features(30), ordered_series(np.repeat([0, 1, 2], [17, 1, 12]), np.arange(30) * 5.0)
    net = network(model)
    full = sequence_logits(net, rows, order)
    half = sequence_logits(net, rows, order, precision="bfloat16 channels_last")
    assert half.slices.dtype == half.study.dtype == np.float32
    assert not np.array_equal(full.slices, half.slices)
    assert np.allclose(full.slices, half.slices, atol=0.05)
    assert np.allclose(full.study, half.study, atol=0.05)
    net.train()
    batch = PlaceFeatures(rows, order, torch.device("cpu")).take(np.arange(3))
    with torch.autocast("cpu", torch.bfloat16):
        slices, study = net(batch.features, batch.places_mm, batch.mask)
    (slices[batch.mask].sum() + study.sum()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in net.parameters() if weight.grad is not None)


def test_features_that_lie_on_the_device_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, order = features(5), ordered_series(np.array([0, 1, 0, 0, 1]), np.array([5.0, 0, 0, 5, 5]))
    host = PlaceFeatures(rows, order, torch.device("cpu"))
    of_all = torch.from_numpy(host.gathered(np.arange(4))).half()
    monkeypatch.setattr(PlaceFeatures, "_hold", lambda *_: of_all)
    device = PlaceFeatures(rows, order, torch.device("cpu"))
    assert (host.where, device.where) == ("host", "device")
    first, second = (sequence_logits(network("bigru"), places, order) for places in (host, device))
    assert np.allclose(first.slices, second.slices, atol=1e-3)
