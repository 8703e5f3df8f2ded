from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main

from ich_ray import cli
from ich_ray.cluster import packing
from ich_ray.cluster.packing import VERBS, pack
from ich_ray.errors import ConfigError, SpaceError
from tests.search.fakes import SPACE


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spaces").mkdir()
    path = tmp_path / "spaces" / "mine.yaml"
    path.write_text(SPACE)
    return path


@pytest.mark.parametrize("given", [["--space", "spaces/mine.yaml"], ["--space=spaces/mine.yaml"]])
def test_the_space_travels_and_everything_else_stays_as_typed(given: list[str], space: Path) -> None:
    parcel = pack(["search", "/shared/D", *given, "--out=s3://bucket/S", "--trials", "9", "--resume", "--seed=3"])
    shipped = ["--space=mine.yaml"] if len(given) == 1 else ["--space", "mine.yaml"]
    assert parcel.command == (
        "search", "/shared/D", *shipped, "--out=s3://bucket/S", "--trials", "9", "--resume", "--seed=3",
    )  # fmt: skip
    assert parcel.files == {"mine.yaml": SPACE.encode()}


def test_names_of_columns_travel_too(space: Path, tmp_path: Path) -> None:
    (columns := tmp_path / "columns.yaml").write_text("any: hemorrhage\n")
    command = ["run", "/nfs/dicom", "--labels", "/nfs/a.csv", "--space", str(space), "--columns", str(columns)]
    parcel = pack([*command, "--out", "/nfs/out"])
    assert parcel.files == {space.name: space.read_bytes(), "columns.yaml": b"any: hemorrhage\n"}
    assert parcel.command[-3:] == ("columns.yaml", "--out", "/nfs/out")


def test_two_files_of_one_name_do_not_travel(space: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (columns := tmp_path / "other" / space.name).write_text("any: hemorrhage\n")
    command = ["run", "/nfs/dicom", "--labels", "/nfs/a.csv", "--space", str(space), "--columns", str(columns)]
    with pytest.raises(ConfigError, match=r"--columns .*: another file of this name travels with the job"):
        pack(command)


def test_a_space_of_the_cluster_stays_there(space: Path) -> None:
    parcel = pack(["search", "/shared/D", "--space", "/shared/other.yaml", "--out", "/shared/S"])
    assert parcel.command[3] == "/shared/other.yaml"
    assert parcel.files == {}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ([], "submit: a job is one of prepare, search, .* got nothing"),
        (["serch"], r"got 'serch' \(did you mean 'search'\?\)"),
        (["submit", "--", "search"], "got 'submit'"),
        (["search", "D", "--space", "spaces/mine.yaml", "--out", "/S"], "an argument: must be an absolute .* got 'D'"),
        (["search", "--resume", "D", "--space", "spaces/mine.yaml", "--out", "/S"], "an argument: .* got 'D'"),
        (["search", "--trials", "3", "D", "--space", "spaces/mine.yaml", "--out", "/S"], "an argument: .* got 'D'"),
        (["predict", "/B", "/scans", "more", "--out", "/p.csv"], "an argument: must be an absolute path .* got 'more'"),
        (["predict", "/B", "/scans", "--heatmaps", "heat", "--out", "/p.csv"], "--heatmaps: must be .* got 'heat'"),
        (["predict", "/B", "/scans", "--dicom-sr", "sr", "--out", "/p.csv"], "--dicom-sr: must be .* got 'sr'"),
        (["doctor", "--cluster-file", "cluster.yaml"], "--cluster-file: must be an absolute path"),
        (["search", "/D", "--space", "spaces/mine.yaml", "--out", "S"], "--out: must be an absolute path .* got 'S'"),
        (["search", "/D", "--space", "spaces/mine.yaml", "--out=S"], "--out: must be an absolute path .* got 'S'"),
        (["search", "/D", "--space", "none.yaml", "--out", "/S"], "--space: must be a file of this machine, or an abs"),
        (["search", "--space", "spaces/mine.yaml", "--warm-start", "../S", "/D"], "--warm-start: must be an absolute"),
        (
            ["search", "/D", "--export", "tensorboard=t", "--out", "/S"],
            "--export tensorboard: must be an absolute path",
        ),
        (["search", "/D", "--export", "tensorbord=/t", "--out", "/S"], "trackers: must be one of .* 'tensorbord'"),
        (["search", "/D", "--out", "s3://me:hunter2hunter2@store/S"], "got a password in an address in line 4"),
    ],
)
def test_a_command_that_cannot_travel_is_refused(command: list[str], says: str, space: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        pack(command)


def test_a_space_is_checked_before_it_travels(space: Path) -> None:
    call = ["search", "/D", "--space", str(space), "--out", "/S"]
    space.write_text(SPACE.replace("reduction", "redaction"))
    with pytest.raises(SpaceError, match="redaction"):
        pack(call)
    space.write_text(SPACE + "# AKIA" + "Q3EXAMPLEKEY7ABC\n")
    with pytest.raises(ConfigError, match="must hold no secret, got an AWS access key in line"):
        pack(call)
    space.write_bytes(b" " * (1 << 20) + b" ")
    with pytest.raises(ConfigError, match="must be at most 1 MB, got 1,048,577 bytes"):
        pack(call)


def test_a_tracker_of_a_cluster_stays_as_typed() -> None:
    command = ["search", "/D", "--export", "mlflow=http://tracker:5000", "--export=tensorboard=/nfs/t", "--out", "/S"]
    assert pack(command).command == tuple(command)


def _is_text(option: Any) -> bool:
    return option.bare_type() == "str" or (option.multiple and "str" in option.bare_type())


def test_every_flag_of_a_verb_that_travels_is_known_to_be_a_place_or_not() -> None:
    """A place that is not checked is looked for in, or lost with, the working folder of the job."""
    options = [
        option
        for verb in VERBS
        for option in typer.main.get_group(cli.app).commands[verb].params
        if option.param_type_name == "option"
    ]
    switches = {name for option in options if option.is_flag for name in option.opts}  # type: ignore[attr-defined]
    assert switches <= set(packing._SWITCHES)
    words = {name for option in options if _is_text(option) for name in option.opts}
    no_places = {"--address", "--column", "--limit-rejected", "--notify", "--patience", "--point", "--tta", "--windows"}
    places = set(packing._PLACES) - {"an argument"}
    assert words - switches - set(packing._TAKEN) - set(packing._TARGETS) == places | no_places


@pytest.mark.parametrize("words", [["--notify", "https://hooks.example/x"], ["--notify=mailto:team@hospital.example"]])
def test_a_job_carries_no_address_for_messages(words: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"must be @FILE, a file of the cluster's head.* ICH_RAY_NOTIFY set$"
    ) as caught:
        pack(["search", "/shared/data", "--out", "/shared/s", *words])
    assert "example" not in str(caught.value)


def test_a_job_is_told_where_its_head_keeps_the_address_for_messages() -> None:
    command = ["search", "/shared/data", "--out", "/shared/s", "--notify", "@/shared/notify"]
    assert pack(command).command == tuple(command)
    with pytest.raises(ConfigError, match="--notify: must be an absolute path"):
        pack(["search", "/shared/data", "--notify", "@notify"])
