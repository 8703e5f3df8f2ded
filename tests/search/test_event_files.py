from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.proto.summary_pb2 import Summary

from ich_ray.search.export.event_files import EventFile, read_events


def scalar(value: float) -> Summary:
    return Summary(value=[Summary.Value(tag="loss", simple_value=value)])


def steps(folder: Path) -> list[int]:
    return [event.step for event in read_events(folder) if event.summary.value]


def test_events_are_read_as_they_were_appended(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "run", 1_600_000_000.0)
    for step in (100, 200):
        file.append(scalar(step / 400), step, 5.0)
    assert file.path.name == "events.out.tfevents.1600000000.0000.ich_ray"
    first, *events = read_events(tmp_path / "run")
    assert first.file_version == "brain.Event:2"
    assert [(one.step, one.wall_time, one.summary.value[0].simple_value) for one in events] == [
        (100, 5.0, 0.25),
        (200, 5.0, 0.5),
    ]
    theirs = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("loss")
    assert [(one.step, one.value, one.wall_time) for one in theirs] == [(100, 0.25, 5.0), (200, 0.5, 5.0)]


def test_of_a_file_cut_anywhere_the_whole_events_are_read(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "whole", 0.0)
    ends = [file.path.stat().st_size]
    for step in (100, 200):
        file.append(scalar(0.5), step, 5.0)
        ends.append(file.path.stat().st_size)
    data, cut = file.path.read_bytes(), tmp_path / "cut" / file.path.name
    cut.parent.mkdir()
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        assert steps(cut.parent) == [100, 200][: sum(length >= end for end in ends[1:])], length


@pytest.mark.parametrize("at", [0, 8, 12, -1])
def test_nothing_is_read_behind_damaged_bytes(tmp_path: Path, at: int) -> None:
    file = EventFile(tmp_path, 0.0)
    begin = file.path.stat().st_size
    file.append(scalar(0.5), 100, 5.0)
    data = bytearray(file.path.read_bytes())
    data[begin + at if at >= 0 else at] ^= 0xFF
    file.path.write_bytes(data)
    assert steps(tmp_path) == []


def test_a_new_file_goes_on_behind_a_torn_one_in_tensorboard_too(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 1_600_000_000.0)
    file.append(scalar(0.25), 100, 5.0)
    with file.path.open("ab") as torn:
        torn.write(b"\x10\x00\x00")
    again = EventFile(tmp_path, 1_600_000_000.0)  # within the same second
    again.append(scalar(0.5), 200, 6.0)
    back = EventFile(tmp_path, 1_500_000_000.0)  # the clock was set back
    back.append(scalar(0.75), 300, 7.0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "events.out.tfevents.1600000000.0000.ich_ray",
        "events.out.tfevents.1600000000.0001.ich_ray",
        "events.out.tfevents.1600000001.0000.ich_ray",
    ]
    assert steps(tmp_path) == [100, 200, 300]
    theirs = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [one.step for one in theirs] == [100, 200, 300]
