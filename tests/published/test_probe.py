from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.published.probe import Probe, ProbeCandidate, probe
from ich_ray.search.space.yaml_file import load_space
from tests.prepared import make_dataset

REPOSITORY = Path(__file__).parent.parent.parent
GRID = """
name: tiny
budget: {images: 400, report_every: 100, first_rung: 100}
sampler: grid
parameters:
  architecture: stacked_cnn
  convolutions: {fixed: 3/2}
  filters: 4
  batch_size: 16
  dropout: {choice: [0.0]}
  learning_rate: {choice: [1.0e-2, 1.0e-7]}
  optimizer: {choice: [sgd, adam]}
  decay: {choice: [0.1, 0.01]}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("probe") / "data", patients=40)


def write(folder: Path, text: str = GRID) -> Path:
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def test_a_probe_chooses_rates_and_a_search_can_begin_with_them(dataset: PreparedDataset, tmp_path: Path) -> None:
    done = probe(dataset.files.root, write(tmp_path), tmp_path / "out", minibatches=3, passes=4)
    assert len(done.candidates) == 8
    assert all(len(candidate.losses) == 4 for candidate in done.candidates)
    winners = done.winners()
    assert [winner.parameters["learning_rate"] for winner in winners] == [0.01, 0.01]
    assert {winner.parameters["optimizer"] for winner in winners} == {"sgd", "adam"}
    space = load_space(tmp_path / "out" / "space.yaml")
    assert [dict(point) for point in space.points] == [winner.parameters for winner in winners]
    assert space.listed is not None
    assert list(space.listed[:2]) == [winner.parameters for winner in winners]
    rows = list(csv.DictReader((tmp_path / "out" / "probe.csv").open()))
    assert len(rows) == 8
    assert [row["winner"] for row in rows].count("1") == 2
    html = (tmp_path / "out" / "probe.html").read_text()
    assert "stacked_cnn, sgd" in html
    assert "8 combinations were fitted to the same 3 minibatches" in html


def test_an_interrupted_probe_goes_on(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, out = write(tmp_path), tmp_path / "out"
    from ich_ray.published import overfit

    fitted: list[float] = []
    whole = overfit.overfit

    def stopping(parameters, *arguments, **keys):  # type: ignore[no-untyped-def]
        if len(fitted) == 3:
            raise KeyboardInterrupt
        fitted.append(parameters.learning_rate)
        return whole(parameters, *arguments, **keys)

    monkeypatch.setattr("ich_ray.published.overfit.overfit", stopping)
    with pytest.raises(KeyboardInterrupt):
        probe(dataset.files.root, space, out, minibatches=1, passes=1)
    fitted = [0.0] * 4
    done = probe(dataset.files.root, space, out, minibatches=1, passes=1)
    assert (len(done.candidates), len(fitted)) == (8, 4 + 5)
    with pytest.raises(ConfigError, match="--out holds a probe of another space, dataset or setting"):
        probe(dataset.files.root, space, out, minibatches=1, passes=2)


def test_a_rate_that_diverges_never_wins() -> None:
    def candidate(rate: float, losses: tuple[float, ...], failure: str = "") -> ProbeCandidate:
        parameters = {"learning_rate": rate, "optimizer": "sgd"}
        return ProbeCandidate(
            parameters=parameters, losses=losses, average_precision=None, failure=failure, seconds=1.0
        )

    tried = (candidate(1.0, (0.1,), "diverged"), candidate(0.1, (0.9, 0.5)), candidate(0.01, (0.9, 0.6)))
    done = Probe(space={}, fingerprint="f" * 32, minibatches=1, passes=2, seed=0, candidates=tried)
    assert [winner.parameters["learning_rate"] for winner in done.winners()] == [0.1]


def test_only_a_grid_is_probed(dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = write(tmp_path, GRID.replace("sampler: grid", ""))
    assert call(["probe", str(dataset.files.root), "--space", str(space), "--out", str(tmp_path / "out")]) == 2
    assert "a probe tries every combination of a grid, got a space that is none" in capsys.readouterr().err


def test_report_a_is_its_grid() -> None:
    space = load_space(REPOSITORY / "search_spaces" / "report_a.yaml")
    assert space.listed is not None
    assert len(space.listed) == 2 * 3 * 2 * 5 * 2 * 2
    residual = [trial for trial in space.listed if trial["architecture"] == "resnet50"]
    assert {(trial["weights"], trial["unfreeze_from"]) for trial in residual} == {("imagenet", "layer4")}
    assert {trial["learning_rate"] for trial in space.listed} == {0.1, 0.05, 0.01, 0.001, 0.0001}
    assert all(trial["momentum"] == 0.9 for trial in space.listed if trial["optimizer"] == "sgd")


def test_without_a_network_or_a_file_nothing_starts(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    report_a, out = str(REPOSITORY / "search_spaces" / "report_a.yaml"), tmp_path / "out"
    for verb in ("probe", "search"):
        assert call([verb, str(dataset.files.root), "--space", report_a, "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("ich-ray: weights: imagenet needs the file")
        assert line.endswith("set TORCH_HOME, or use weights: none")
        assert not out.exists()
