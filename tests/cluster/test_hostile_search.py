"""A search directory that somebody else made to do harm: refused in one line, nothing executed or read elsewhere."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ich_ray import cli
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card import Card
from ich_ray.errors import IntegrityError
from ich_ray.results import open_search
from ich_ray.search.ledger import Ledger
from ich_ray.search.tune.trial import checkpoints_of
from ich_ray.storage import SearchFiles, locate, sha256
from ich_ray.training.state import TrainingState
from tests.prepared import make_dataset
from tests.records import make_record
from tests.searched import make_bundle, make_search

MARK = "executed-by-a-pickle"


class Bomb:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder / MARK),)


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    ledger = Ledger.create(tmp_path / "s", make_record())
    ledger.add({"dropout": 0.1})
    return ledger.files


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "file",
    ["../../etc/passwd", "/etc/passwd", "checkpoints/../../x", "a//b", ".", "", "s3://bucket/x", "..\\x", "a/./b"],
)
def test_a_checkpoint_outside_the_search_is_refused(file: str, files: SearchFiles) -> None:
    reference = {"file": file, "sha256": "0" * 64, "images_seen": 1}
    change(Path(str(files.trial(0))), checkpoint=reference)
    with pytest.raises(IntegrityError, match=r"got Value error, a file below this folder, not .*at checkpoint\.file"):
        open_search(files.root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 200_000, "must be JSON, got maximum recursion depth exceeded"),
        ('{"number": ' + "9" * 5000 + "}", "must be JSON, got Exceeds the limit"),
        ('{"number": 1e400}', "must be JSON, got 1e400, which no number can hold"),
        ('{"number": NaN}', "must be JSON, got NaN, which is no number"),
        (pickle.dumps({"number": 0}).decode("latin1"), "must be JSON"),
        ('{"number": 7, "parameters": {}}', "must hold the trial of its name, got number 7"),
        ('{"number": -1, "parameters": {}}', "must match its format"),
        ('{"number": 0, "parameters": {}, "__class__": "os.system"}', "Extra inputs are not permitted"),
    ],
)
def test_a_trial_file_that_is_none_is_one_line_and_exit_5(
    text: str, says: str, files: SearchFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(str(files.trial(0))).write_text(text, encoding="latin1")
    assert cli.call(["results", str(files.root)]) == 5
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_huge_file_and_one_without_end_are_refused(files: SearchFiles) -> None:
    trial = Path(str(files.trial(0)))
    with trial.open("wb") as file:
        file.truncate(3 << 30)  # no blocks on disk: 3 GiB of zeros
    with pytest.raises(IntegrityError, match=r"00000\.json: must be JSON of at most 64 MiB, got more"):
        open_search(files.root)
    trial.unlink()
    os.mkfifo(trial)
    with pytest.raises(IntegrityError, match=r"00000\.json: must be a file, got something else"):
        open_search(files.root)
    trial.unlink()
    trial.symlink_to("/dev/zero")
    with pytest.raises(IntegrityError, match=r"00000\.json: must be a file, got something else"):
        open_search(files.root)


def test_text_that_would_steer_a_terminal_stays_text(files: SearchFiles, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path(str(files.trial(0))), parameters={"dropout": "[/bold] [link=http://x]y[/link]"})
    assert cli.call(["results", str(files.root)]) == 0
    assert "[/bold] [link=http://x]y[/link]" in capsys.readouterr().out
    for steering in ({"parameters": {"dropout": "\x1b]0;x\x07"}}, {"reason": "\x1b[2J"}, {"where": "a\r\nb"}):
        change(Path(str(files.trial(0))), **{"parameters": {}, "reason": "", "where": "", **steering})
        assert cli.call(["results", str(files.root)]) == 5
        said = capsys.readouterr()
        assert "printable characters only" in said.err
        assert "\x1b" not in said.out + said.err


def test_a_pickle_under_another_name_is_not_executed(tmp_path: Path) -> None:
    found = make_search(tmp_path / "s", make_dataset(tmp_path / "data", patients=20))
    make_bundle(found, make_dataset(tmp_path / "other", patients=20)).save(found.bundle)
    weights, card = Path(str(found.bundle)) / "model.safetensors", Path(str(found.bundle)) / "card.json"
    for number, bomb in enumerate((pickle.dumps(Bomb(tmp_path)), b"")):
        weights.write_bytes(bomb)
        if number:
            torch.save({"x": Bomb(tmp_path)}, weights)
        change(card, weights={"file": "model.safetensors", "sha256": sha256(locate(weights))})
        with pytest.raises(
            IntegrityError, match=r"model\.safetensors: must be the weights of its card, got .*"
        ) as caught:
            load_bundle(found.bundle)
        assert "\n" not in str(caught.value)
        with pytest.raises(IntegrityError, match="a training state must be there, whole, got "):
            TrainingState.load(weights)
    assert not (tmp_path / MARK).exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path)))  # noqa: S301
    assert (tmp_path / MARK).exists()  # the bomb does work


def test_weights_and_blocks_outside_their_folders_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=20)
    found = make_search(tmp_path / "s", dataset)
    make_bundle(found, dataset).save(found.bundle)
    card = Path(str(found.bundle)) / "card.json"
    assert Card.model_validate_json(card.read_text()).weights.file == "model.safetensors"
    change(card, weights={"file": "../../../secret", "sha256": "0" * 64})
    with pytest.raises(
        IntegrityError, match=r"a file below this folder, not '\.\./\.\./\.\./secret', at weights\.file"
    ):
        load_bundle(found.bundle)
    manifest = tmp_path / "data" / "dataset.json"
    blocks = json.loads(manifest.read_text())["blocks"]
    change(manifest, blocks=[{**blocks[0], "file": "/dev/shm/x"}, *blocks[1:]])
    with pytest.raises(IntegrityError, match=r"a file below this folder, not '/dev/shm/x', at blocks\.0\.file"):
        type(dataset).open(tmp_path / "data")


def test_a_resumed_trial_reads_only_its_own_folder(files: SearchFiles, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"x")
    folder = Path(str(files.checkpoint(0)))
    folder.mkdir(parents=True)
    entry = {"file": "../../../secret.safetensors", "sha256": sha256(locate(secret)), "images_seen": 5, "reports": []}
    (folder / "a.json").write_text(json.dumps(entry))
    assert checkpoints_of(files, 0).newest() is None


@pytest.mark.parametrize("verb", [["results"], ["audit"], ["report"], ["confirm", "--folds", "2"], ["retrain"]])
@pytest.mark.parametrize(
    "place",
    ["trials", "checkpoints", "checkpoints/00007", "final", "final/bundle", "final/retraining-0123456789ab", "logs"],
)
def test_nothing_is_written_or_removed_where_a_link_leads(
    place: str, verb: list[str], files: SearchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = plant_link(Path(str(files.root)) / place, tmp_path)
    assert cli.call([verb[0], str(files.root), *verb[1:]]) == 5
    assert capsys.readouterr().err == (
        f"ich-ray: {files.root / place}: folders of a search must lie in it, got a link; put there what it leads to, "
        "or link the whole search\n"
    )
    assert (theirs / "letters" / "one").read_text() == "text"


def test_a_search_that_goes_on_removes_no_folder_of_others(files: SearchFiles, tmp_path: Path) -> None:
    theirs = plant_link(Path(str(files.checkpoints)), tmp_path)
    with pytest.raises(IntegrityError, match="checkpoints: folders of a search must lie in it, got a link"):
        Ledger.open(files.root)
    Path(str(files.search)).unlink()
    (Path(str(files.trial(0)))).unlink()
    (theirs / "letters" / "one").unlink()
    (theirs / "letters").rmdir()  # a folder with something in it is refused as a search that was there before
    with pytest.raises(IntegrityError, match="checkpoints: folders of a search must lie in it, got a link"):
        Ledger.create(files.root, make_record())


def test_a_whole_search_may_be_a_link(files: SearchFiles, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(str(files.root))
    assert len(open_search(tmp_path / "link").trials) == 1


def plant_link(place: Path, folder: Path) -> Path:
    """A link to a folder with somebody's letters in it, in the place of a folder of a search."""
    theirs = folder / "theirs"
    (theirs / "letters").mkdir(parents=True)
    (theirs / "letters" / "one").write_text("text")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        place.rename(folder / "aside")
    place.symlink_to(theirs)
    return theirs


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe"])
def test_a_lock_that_is_no_file_stops_no_audit(
    kind: str, files: SearchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = Path(str(files.lock))
    if kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock if kind == "pipe" else tmp_path / "pipe")
    if kind == "link to a pipe":
        lock.symlink_to(tmp_path / "pipe")
    assert cli.call(["audit", str(files.root)]) == 0
    assert capsys.readouterr().out.startswith(f"{files.root}: interrupted\n")


@pytest.mark.parametrize(
    "space", [{}, {"budget": []}, {"budget": {"images": "9" * 4000}}, {"budget": {"images": -1, "report_every": 0}}]
)
@pytest.mark.parametrize("verb", [["retrain"], ["confirm", "--seeds", "2"]])
def test_a_space_without_its_budget_is_damage(
    verb: list[str], space: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make_search(tmp_path / "s", make_dataset(tmp_path / "dataset", patients=20))
    change(Path(str(files.search)), space={"name": "x"} | space)
    assert cli.call([verb[0], str(files.root), *verb[1:]]) == 5
    assert "search.json: the space must have a budget, got " in capsys.readouterr().err


@pytest.mark.parametrize(
    "parameters", [[1], "x", {"dropout": [1]}, {"dropout": {"choice": 5}}, {"dropout": {"choice": [[1], {}]}}]
)
def test_a_report_shows_a_search_whose_space_it_cannot_read(parameters: object, tmp_path: Path) -> None:
    files = make_search(tmp_path / "s", make_dataset(tmp_path / "dataset", patients=20))
    change(Path(str(files.search)), space={"name": "x", "parameters": parameters})
    assert cli.call(["report", str(files.root)]) == 0


def test_trials_that_are_no_folder_are_damage(files: SearchFiles, tmp_path: Path) -> None:
    Path(str(files.trials)).rename(tmp_path / "aside")
    os.mkfifo(str(files.trials))
    with pytest.raises(IntegrityError, match=r"s/trials: must be a folder, got something else; restore it"):
        open_search(files.root)
