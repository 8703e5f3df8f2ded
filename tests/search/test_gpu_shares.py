from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_ray.search.gpu_shares import STEPS, DeviceKind, GpuShares, grouped, share_of

GIB = 2**30
SMALL = DeviceKind(8 * GIB, 2, 100, frozenset({"a"}))
LARGE = DeviceKind(80 * GIB, 1, 100, frozenset({"b"}))


@pytest.mark.parametrize(
    ("need", "share"), [(0, 0.125), (1, 0.125), (1.01, 0.25), (2, 0.25), (3.9, 0.5), (4.1, 1), (8, 1), (8.1, None)]
)
def test_a_share_is_the_least_step_that_holds_what_is_needed(need: float, share: float | None) -> None:
    assert share_of(need * GIB, 8 * GIB) == share


def test_machines_of_one_model_are_of_one_kind_and_count_by_the_least() -> None:
    machines = [
        DeviceKind(84.9e9, 2, 8, frozenset({"a"})),
        DeviceKind(85.1e9, 1, 4, frozenset({"b"})),
        DeviceKind(24e9, 1, 2, frozenset({"c"})),
    ]
    assert grouped(machines) == [
        DeviceKind(24e9, 1, 2, frozenset({"c"})),
        DeviceKind(84.9e9, 3, 12, frozenset({"a", "b"})),
    ]


def test_small_trials_keep_off_large_devices_until_the_small_ones_are_full() -> None:
    shares = GpuShares(lambda: [LARGE, SMALL])
    assert [shares.assign(number, 4 * GIB) for number in range(5)] == [(0.5, 8 * GIB)] * 4 + [(0.125, 80 * GIB)]
    assert shares.assign(5, 30 * GIB) == (0.5, 80 * GIB)
    assert shares.assign(6, 200 * GIB) == (1.0, 80 * GIB)  # nothing holds it, it takes its chance


def test_where_nothing_holds_any_trial_they_are_drawn_all_the_same() -> None:
    shares = GpuShares(lambda: [SMALL], least=9 * GIB)
    assert shares.has_room()
    assert shares.assign(0, 9 * GIB) == (1, 8 * GIB)
    shares.assign(1, 9 * GIB)
    assert not shares.has_room()


def test_cpus_bound_the_trials() -> None:
    shares = GpuShares(lambda: [DeviceKind(8 * GIB, 2, 3, frozenset())])
    for number in range(3):
        assert shares.has_room()
        shares.assign(number, GIB)
    assert shares.has_room() is False


def test_nothing_is_drawn_while_a_trial_waits_for_room() -> None:
    shares = GpuShares(lambda: [SMALL])
    for number in range(3):
        shares.assign(number, 4 * GIB)
        shares.started(number)
    shares.assign(3, 8 * GIB)  # half a device is free, it needs a whole one
    assert not shares.has_room()
    shares.ended(0)
    assert not shares.has_room()  # what came free is not for anybody else
    shares.started(3)
    shares.ended(1)
    assert shares.has_room()
    shares.started(1)  # Tune was slower than its end
    assert shares.has_room()


def test_a_larger_trial_that_a_smaller_one_has_overtaken_waits_for_room() -> None:
    shares = GpuShares(lambda: [SMALL])
    shares.assign(0, 8 * GIB)
    shares.assign(1, GIB)
    shares.started(1)
    assert not shares.has_room()
    shares.started(0)
    assert shares.has_room()


def test_who_waits_for_one_kind_of_device_holds_no_other_up() -> None:
    shares = GpuShares(lambda: [SMALL, LARGE])
    shares.assign(0, 80 * GIB)
    shares.assign(1, 80 * GIB)
    assert shares.has_room()
    assert shares.assign(2, GIB) == (0.125, 8 * GIB)


def test_memory_that_ran_out_doubles_up_to_all_of_the_largest() -> None:
    shares = GpuShares(lambda: [SMALL, LARGE])
    assert shares.assign(0, GIB) == (0.125, 8 * GIB)
    assert shares.grow(0) == (0.25, 8 * GIB)
    assert shares.again(0) == (0.25, 8 * GIB)  # lost to something else
    assert shares.assign(1, 8 * GIB) == (1, 8 * GIB)
    assert shares.grow(1) == (0.25, 80 * GIB)
    assert shares.assign(2, 60 * GIB) == (1, 80 * GIB)
    assert not shares.can_grow(2)
    assert shares.grow(2) is None


kinds_drawn = st.lists(
    st.tuples(st.sampled_from([8, 16, 24, 48, 80]), st.integers(1, 3), st.integers(1, 12)),
    min_size=1,
    max_size=3,
    unique_by=lambda kind: kind[0],
)


@settings(max_examples=150, deadline=None)
@given(kinds=kinds_drawn, needs=st.lists(st.floats(0.1, 100), min_size=1, max_size=40), seed=st.integers(0, 999))
def test_memory_is_never_planned_twice_and_every_trial_starts(
    kinds: list[tuple[int, int, int]], needs: list[float], seed: int
) -> None:
    """Against a packer that gives shares as Ray does: in any order, of the fullest device that has room."""
    chance = random.Random(seed)
    there = [DeviceKind(memory * GIB, devices, cpus, frozenset({str(memory)})) for memory, devices, cpus in kinds]
    largest = max(kind.memory for kind in there)
    shares = GpuShares(lambda: there)
    devices = {(kind.memory, index): dict[int, float]() for kind in there for index in range(int(kind.devices))}
    cpus = Counter({kind.memory: kind.trials for kind in there})
    waiting: list[int] = []
    drawn, ended = 0, 0
    for _ in range(20 * len(needs)):
        while drawn < len(needs) and shares.has_room():
            shares.assign(drawn, needs[drawn] * GIB)
            waiting.append(drawn)
            drawn += 1
        for number in chance.sample(waiting, len(waiting)):
            share = shares.share(number)
            free = [key for key, on in devices.items() if key[0] == share.memory and sum(on.values()) + share.gpus <= 1]
            if free and cpus[share.memory]:
                best = max(free, key=lambda key: sum(devices[key].values()))
                devices[best][number] = share.gpus
                cpus[share.memory] -= 1
                waiting.remove(number)
                shares.started(number)
        for (memory, _), on in devices.items():
            assert sum(min(needs[number] * GIB, largest) for number in on) <= memory * (1 + 1e-6)
        running = [(key, number) for key, on in devices.items() for number in on]
        assert running, "some trial must run"
        (memory, index), number = chance.choice(running)
        del devices[memory, index][number]
        cpus[memory] += 1
        shares.ended(number)
        ended += 1
        if ended == len(needs):
            break
        assert len(waiting) <= len(there) + sum(kind.trials for kind in there)
    assert ended == len(needs)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 9999))
def test_no_large_trial_is_overtaken_for_ever(seed: int) -> None:
    """Small trials without end come and go in any order; a large one starts before long."""
    chance = random.Random(seed)
    shares = GpuShares(lambda: [DeviceKind(8 * GIB, 3, 99, frozenset())])
    devices = [dict[int, float]() for _ in range(3)]
    waiting: list[int] = []
    for drawn in range(10_000):
        if not shares.has_room():
            break
        shares.assign(drawn, GIB)
        waiting.append(drawn)
    large = len(waiting)
    count, after = large, 0
    is_drawn = False
    for _ in range(400):
        while shares.has_room():
            shares.assign(count, 8 * GIB if not is_drawn else GIB)
            is_drawn = True
            waiting.append(count)
            count += 1
        for number in chance.sample(waiting, len(waiting)):
            gpus = shares.share(number).gpus
            free = [on for on in devices if sum(on.values()) + gpus <= 1]
            if free:
                chance.choice(free)[number] = gpus
                waiting.remove(number)
                shares.started(number)
                after += is_drawn and large not in [other for on in devices for other in on]
        if any(large in on for on in devices):
            break
        on = chance.choice([on for on in devices if on])
        number = chance.choice(list(on))
        del on[number]
        shares.ended(number)
    else:
        pytest.fail("a large trial never started")
    assert after <= 24


@settings(max_examples=200, deadline=None)
@given(memory=st.floats(1, 100), needs=st.lists(st.floats(0, 100), min_size=2, max_size=2))
def test_more_memory_never_takes_a_smaller_share_nor_a_larger_device_a_larger_one(
    memory: float, needs: list[float]
) -> None:
    less, more = (share_of(need, memory) or 2 for need in sorted(needs))
    assert less <= more
    assert (share_of(max(needs), 2 * memory) or 2) <= more
    assert {less, more} <= {*STEPS, 2}
