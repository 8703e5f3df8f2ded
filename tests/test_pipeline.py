from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from upath import UPath

from ich_ray import cli, pipeline
from ich_ray.data.dataset import PreparedDataset
from ich_ray.display import print_run
from ich_ray.errors import ConfigError, IntegrityError, SpaceError
from ich_ray.refit.retrain import chosen_trial
from ich_ray.results import open_search
from ich_ray.search.cluster_resources import Machine
from ich_ray.search.space.builtin_spaces import builtin_space
from ich_ray.storage import SearchFiles, locate, read_json, remove, write_json
from tests.prepared import make_dataset
from tests.records import make_card, make_confirmation
from tests.test_cli import make_search

STAGES = {
    "prepare": "ich_ray.data.prepare.run",
    "run_search": "ich_ray.search.run",
    "confirm": "ich_ray.refit.confirm",
    "retrain": "ich_ray.refit.retrain",
    "sequence": "ich_ray.refit.sequence",
    "calibrate": "ich_ray.assess.calibration",
    "evaluate": "ich_ray.assess.evaluate",
    "report": "ich_ray.html_report.page",
}

MACHINE = Machine("laptop", 2.0, 0.0, 1)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages, replaced by ones that only leave their files; the list of those that ran."""
    calls: list[str] = []
    files = SearchFiles(locate(tmp_path / "search"))
    card = files.bundle / "card.json"

    def stage(name: str) -> Any:
        def work(*_: Any, **options: Any) -> Any:
            calls.append(f"{name} --resume" if options.get("resume") else name + asked(name, options))
            assert options.get("space") is None, "that of the search which is there, or of the package"
            if name == "prepare":
                return dataset
            if name == "run_search" and not files.search.exists():
                make_search(tmp_path / "search")
                held = {"dataset": str(dataset.files.root), "fingerprint": dataset.manifest.fingerprint}
                write_json(files.search, {**read_json(files.search), **held})
            if name == "confirm":
                write_json(files.confirmation, make_confirmation(0, 1, 0))
            if name == "retrain":
                write_json(files.retraining, retraining(chosen_trial(open_search(files.root)).number))
                write_json(card, make_card(tta=[*options["tta"]], **trained_as(tmp_path)))
            if name in (later := noted((tmp_path / "series").exists())):
                write_json(card, {**read_json(card), **later[name]})
            return files.report

        return work

    dataset = make_dataset(tmp_path / "dataset", patients=40, size=16)
    monkeypatch.setattr(pipeline, "connected", lambda _: nullcontext())
    monkeypatch.setattr(
        "ich_ray.search.cluster_resources.ClusterResources", lambda: SimpleNamespace(machines=lambda: [MACHINE])
    )
    for name, module in STAGES.items():
        monkeypatch.setattr(f"{module}.{name}", stage(name))
    return calls


def trained_as(folder: Path) -> dict[str, Any]:
    """What else a retraining writes into the card, for tests of bundles of another kind."""
    return read_json(told) if (told := locate(folder / "retrained.json")).exists() else {}  # type: ignore[return-value]


def noted(series: bool) -> dict[str, dict[str, Any]]:
    """What stages after the retraining write into the card."""
    sequence = {"sequence": SEQUENCE if series else None}
    return {"sequence": sequence, "calibrate": {"operating_points": {"f2": POINT}}, "evaluate": {"test": {}}}


def asked(name: str, options: dict[str, Any]) -> str:
    """What a stage was asked for, as on a command line."""
    told = f" --top {options['top']} --folds {options.get('folds')}" if name == "confirm" else ""
    told += f" --trials {options['trials']}" if name == "sequence" else ""
    told += f" --gpus-per-trial {options['gpus_per_trial']}" if "gpus_per_trial" in options else ""
    told += " --no-grow" if options.get("grow") is False else ""
    return told + "".join(f" --tta {view}" for view in options.get("tta", ()))


def retraining(trial: int) -> dict[str, Any]:
    return {"trial": trial, "parameters": {}, "workers": 1, "reports": [], "best_images_seen": 1,
            "stopped_early": False, "seconds": 0.0, "device": "cpu"}  # fmt: skip


def run(
    folder: Path, space: Path | str = "", confirm: int = 3, tta: Sequence[str] = (), sequence: int = 0
) -> pipeline.RunResult:
    space = space or builtin_space("demo")
    return pipeline.run("images", "labels", space, folder, confirm=confirm, tta=tta, sequence=sequence)


SEQUENCE = {"parameters": {}, "features": 3, "blend": {"any": {}}}
POINT = {"threshold": 0.5, "sensitivity": None, "specificity": None, "ppv": None, "f2": None}
CONFIRM = "confirm --top 3 --folds 2"


def test_stages_run_in_order_and_finished_ones_are_skipped(ran: list[str], tmp_path: Path) -> None:
    result = run(tmp_path)
    assert ran == ["prepare", "run_search", CONFIRM, "retrain", "calibrate", "evaluate", "report"]
    assert str(result.bundle) == str(tmp_path / "search" / "final" / "bundle")
    assert result.search.best().number == 1
    assert result.confirmation is not None
    assert result.confirmation.chosen == read_json(result.search.files.retraining)["trial"] == 0
    ran.clear()
    run(tmp_path)
    assert ran == ["prepare", "run_search --resume", "report"]


def test_views_reach_the_retraining_and_a_bundle_with_others_is_kept(ran: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tta: each must be one of hflip, depth_flip, named once, got vflip"):
        run(tmp_path, tta=["vflip"])
    with pytest.raises(ConfigError, match="--tta depth_flip: exchanges the neighbors"):
        run(tmp_path, tta=["depth_flip"])
    assert ran == []
    result = run(tmp_path, tta=["hflip"])
    assert ran == ["prepare", "run_search", CONFIRM, "retrain --tta hflip", "calibrate", "evaluate", "report"]
    assert result.card["tta"] == ["hflip"]
    ran.clear()
    assert run(tmp_path).card["tta"] == ["hflip"]
    assert run(tmp_path, tta=["hflip"]).card["tta"] == ["hflip"]
    assert ran == ["prepare", "run_search --resume", "report"] * 2
    card = result.bundle / "card.json"
    write_json(card, {**read_json(card), "tta": []})
    with pytest.raises(ConfigError, match=r"--tta hflip: the bundle must have been made with it, got .* with none; le"):
        run(tmp_path, tta=["hflip"])


def test_a_view_that_the_chosen_trial_cannot_be_shown_is_left_out_and_said(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.progress.say", said.append)
    for _ in range(2):
        result = run(tmp_path, builtin_space("small"), tta=["depth_flip", "hflip"])
        assert result.card["tta"] == ["hflip"]
    assert said.count("--tta depth_flip: left out, trial 0 sees no neighbors") == 2
    assert ran.count("retrain --tta hflip") == 1


def test_shares_that_memory_decides_are_asked_of_the_search_alone(ran: list[str], tmp_path: Path) -> None:
    pipeline.run("images", "labels", builtin_space("demo"), tmp_path, sequence=0, gpus_per_trial="auto")
    assert ran[1:3] == ["run_search --gpus-per-trial auto", f"{CONFIRM} --gpus-per-trial None"]


def test_trials_and_trainings_grow_or_neither_does(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ich_ray.display.print_run", lambda *_: None)
    words = ["run", "images", "--labels", "labels", "--space", str(builtin_space("demo")), "--out", str(tmp_path)]
    assert cli.call([*words, "--sequence", "0", "--no-grow"]) == 0
    none = " --gpus-per-trial None --no-grow"
    assert ran[1:3] == [f"run_search{none}", f"{CONFIRM}{none}"]


def test_nothing_is_confirmed_if_not_asked_or_if_one_trial_alone_has_completed(ran: list[str], tmp_path: Path) -> None:
    result = run(tmp_path, confirm=0)
    assert ran == ["prepare", "run_search", "retrain", "calibrate", "evaluate", "report"]
    assert result.confirmation is None
    files = SearchFiles(locate(tmp_path / "search"))
    write_json(files.trial(0), {**read_json(files.trial(0)), "state": "pruned"})
    ran.clear()
    run(tmp_path)
    assert ran == ["prepare", "run_search --resume", "report"]


def test_folds_that_cannot_be_held_out_give_way_to_seeds(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("slices with and without haemorrhage must be in fold 0")

    monkeypatch.setattr("ich_ray.data.folds.check_folds", refuse)
    run(tmp_path)
    assert "confirm --top 3 --folds None" in ran


def test_a_sequence_model_is_searched_before_probabilities_are_fitted(ran: list[str], tmp_path: Path) -> None:
    (tmp_path / "series").touch()
    assert run(tmp_path, sequence=3).card["sequence"]["features"] == 3
    stages = ["retrain", "sequence --trials 3", "calibrate", "evaluate", "report"]
    assert ran == ["prepare", "run_search", CONFIRM, *stages]
    ran.clear()
    run(tmp_path, sequence=3)
    assert ran == ["prepare", "run_search --resume", "report"]
    write_json(SearchFiles(locate(tmp_path / "search")).retraining, retraining(1))
    ran.clear()
    run(tmp_path, sequence=3)
    assert ran == ["prepare", "run_search --resume", *stages]


def test_a_dataset_without_series_is_asked_again_and_goes_on(ran: list[str], tmp_path: Path) -> None:
    assert run(tmp_path, sequence=3).card["sequence"] is None
    assert ran[-4:] == ["sequence --trials 3", "calibrate", "evaluate", "report"]


def test_test_patients_are_not_opened_again_for_a_sequence_model_that_nobody_asked_for(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.progress.say", said.append)
    run(tmp_path)
    ran.clear()
    run(tmp_path, sequence=3)
    assert ran == ["prepare", "run_search --resume", "report"]
    assert [line for line in said if line.startswith("sequence: left out, the test patients were opened")]


MEMBER = {"trial": 1, "seed": 0, "parameters": {}, "shifts": [0.0],
          "weights": {"file": "model-1.safetensors", "sha256": "ab" * 32}}  # fmt: skip
ON_ALL = {"patients": "train+validation", "images": 1, "budget": "", "best_images_seen": 1, "seed": 0, "seeds": [0],
          "rule": "the only one", "validation": None}  # fmt: skip


@pytest.mark.parametrize(
    ("card", "roles", "why"),
    [
        ({"members": [MEMBER]}, {}, "final/bundle: a sequence model reads features of one network, got a bundle of"),
        ({"retraining": ON_ALL}, {}, "got one that trained on train+validation; retrain it with --patients train"),
        ({}, {"calibration": {"positives": 0}}, "calibration must have positive and negative slices, got 0 positive"),
    ],
)
def test_a_sequence_model_that_cannot_be_is_left_out_and_said(
    ran: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    card: dict[str, Any],
    roles: dict[str, dict[str, int]],
    why: str,
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.progress.say", said.append)
    write_json(locate(tmp_path / "retrained.json"), card)
    manifest = read_json(locate(tmp_path / "dataset" / "dataset.json"))
    held = {name: {**counts, **roles.get(name, {})} for name, counts in manifest["roles"].items()}
    write_json(locate(tmp_path / "dataset" / "dataset.json"), {**manifest, "roles": held})
    run(tmp_path, sequence=3)
    assert ran == ["prepare", "run_search", CONFIRM, "retrain", "calibrate", "evaluate", "report"]
    (line,) = [line for line in said if line.startswith("sequence")]
    assert line.startswith("sequence: left out, ")
    assert why in line


def test_a_sequence_model_on_object_storage_is_left_out_and_said(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    there = SearchFiles(UPath(f"memory://{tmp_path.name}/search"))
    for path in (tmp_path / "search").rglob("*.json"):
        content = read_json(locate(path))
        known = {**content, "test": None} if path.name == "card.json" else content
        write_json(there.root / path.relative_to(tmp_path / "search").as_posix(), known)
    said: list[str] = []
    monkeypatch.setattr("ich_ray.progress.say", said.append)
    ran.clear()
    pipeline.finish(there, sequence=3)
    assert ran == ["evaluate", "report"]
    (line,) = [line for line in said if line.startswith("sequence")]
    assert line.startswith(f"sequence: left out, {there.sequence.root}: features of slices are mapped from a folder")


def test_a_sequence_search_that_is_there_goes_on(ran: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    files = SearchFiles(locate(tmp_path / "search"))
    remove(files.bundle)
    write_json(files.sequence.search, {**read_json(files.search), "trials": 5})
    ran.clear()
    run(tmp_path, sequence=3)
    assert ran[2:] == ["retrain", "sequence --resume", "calibrate", "evaluate", "report"]


def test_another_best_trial_is_retrained_and_all_after_it(ran: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    files = SearchFiles(locate(tmp_path / "search"))
    write_json(files.retraining, retraining(1))
    ran.clear()
    run(tmp_path)
    assert ran == ["prepare", "run_search --resume", "retrain", "calibrate", "evaluate", "report"]


def test_a_bundle_that_is_gone_is_made_again(ran: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    files = SearchFiles(locate(tmp_path / "search"))
    remove(files.bundle)
    ran.clear()
    run(tmp_path)
    assert ran == ["prepare", "run_search --resume", "retrain", "calibrate", "evaluate", "report"]
    write_json(files.retraining, [])
    with pytest.raises(
        IntegrityError, match=r"retraining\.json: must match its format, got .*; remove the file and run a"
    ):
        run(tmp_path)


def test_the_best_of_the_search_is_not_taken_against_a_confirmation(ran: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    ran.clear()
    with pytest.raises(ConfigError, match=r"--confirm 0: .*confirm\.json, which chose trial 0; leave out --confirm to"):
        run(tmp_path, confirm=0)
    assert ran == []
    SearchFiles(locate(tmp_path / "search")).confirmation.unlink()
    assert run(tmp_path, confirm=0).chosen.number == 1
    assert ran == ["prepare", "run_search --resume", "retrain", "calibrate", "evaluate", "report"]


def test_the_end_names_the_chosen_trial_and_the_best_of_the_search(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undefined = {"value": None, "low": None, "high": None}
    card = {"test": {"operating_points": {}, "metrics": {"average_precision": undefined}}}
    result = replace(run(tmp_path), card=card)
    print_run(result, as_json=False)
    assert capsys.readouterr().out.splitlines()[:5] == [
        "chosen trial      0 of 3, by confirmation: learning_rate=0.001 optimizer=adam",
        "selection score   average_precision 0.500 on the validation patients (optimistic: it chose)",
        "best in search    trial 1: average_precision 0.700, not confirmed as the best",
        "confirmed         trial 1: mean 0.400, SD - of 1",
        "confirmed         trial 0: mean 0.400, SD - of 1, the chosen one",
    ]
    manifest = result.dataset.manifest.model_copy(update={"rejected": 12})
    print_run(replace(result, dataset=PreparedDataset(result.dataset.files, manifest)), as_json=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rejected")]
    root = result.dataset.files.root
    assert line == f"rejected          12 of {manifest.listed} files; which: ich-ray identify {root}"
    print_run(result, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["best_trial"]["number"], told["chosen_trial"]["number"]) == (1, 0)

    result.search.files.confirmation.unlink()
    print_run(replace(run(tmp_path, confirm=0), card=card), as_json=False)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "chosen trial      1 of 3, the best of the search: learning_rate=0.001 optimizer=adam",
        "selection score   average_precision 0.700 on the validation patients (optimistic: it chose)",
        "                  average_precision undefined",
    ]


def test_the_end_has_figures_of_studies_after_those_of_slices(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undefined = {"value": None, "low": None, "high": None}
    half = {"value": 0.5, "low": 0.25, "high": 0.75}
    point = {"threshold": 0.25, "sensitivity": half, "specificity": undefined, "ppv": {**half, "low": None}}
    metrics = {"average_precision": half, "roc_auc": undefined}
    studies = {"cases": 24, "operating_points": {"study_f2": point}, "metrics": metrics, "notes": ["few"]}
    card = {"test": {"operating_points": {}, "metrics": metrics, "studies": studies}}
    print_run(replace(run(tmp_path), card=card), as_json=False)
    assert capsys.readouterr().out.splitlines()[5:10] == [
        "                  average_precision 0.500 [0.250, 0.750]",
        "by study          study_f2: probability >= 0.250",
        "on test studies   sensitivity 0.500 [0.250, 0.750], specificity undefined, ppv 0.500",
        "by study          24 studies: average_precision 0.500 [0.250, 0.750], roc_auc undefined",
        "note              by study: few",
    ]


def test_a_new_favorite_is_confirmed_beside_the_others(ran: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    files = SearchFiles(locate(tmp_path / "search"))
    write_json(files.trial(2), {**read_json(files.trial(2)), "state": "completed"})
    ran.clear()
    run(tmp_path)
    assert ran == ["prepare", "run_search --resume", CONFIRM, "report"]


def test_a_wider_confirmation_by_hand_counts(ran: list[str], tmp_path: Path) -> None:
    run(tmp_path)
    files = SearchFiles(locate(tmp_path / "search"))
    write_json(files.confirmation, make_confirmation(1, 0, 1, 7, 8))
    write_json(files.retraining, retraining(1))
    ran.clear()
    run(tmp_path)
    assert ran == ["prepare", "run_search --resume", "report"]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], {"slab_mm": 0, "examinations": None, "level": "slice", "columns": {}}),
        (
            ["--slab-mm", "5", "--examinations", "studies.csv", "--column", "examinations.any=ICH"],
            {"slab_mm": 5, "examinations": "studies.csv", "level": None, "columns": {"examinations.any": "ICH"}},
        ),
    ],
)
def test_what_is_asked_of_prepare_reaches_it(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], asked: dict[str, Any]
) -> None:
    told: dict[str, Any] = {}

    def prepare(*_: Any, **options: Any) -> None:
        told.update(options)
        raise ConfigError("seen")

    monkeypatch.setattr("ich_ray.data.prepare.run.prepare", prepare)
    space = str(builtin_space("demo"))
    arguments = ["images", "--labels", "labels", "--space", space, "--out", str(tmp_path)]
    assert cli.call(["run", *arguments, *flags]) == 2
    assert {name: told[name] for name in asked} == asked
    assert ran == []


def test_trials_that_fit_on_no_machine_cost_no_decoding(ran: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gpus-per-trial: a trial must fit on one machine, got 1"):
        pipeline.run("images", "labels", builtin_space("demo"), tmp_path / "new", gpus_per_trial=1)
    assert ran == []
    pipeline.run("images", "labels", builtin_space("demo"), tmp_path, gpus_per_trial=1)
    assert ran[0] == "prepare"  # it is finished: a search that has ended needs no accelerator any more


def test_a_mistake_in_the_space_costs_no_decoding(ran: list[str], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("name: x\nparametres: {}\n")
    with pytest.raises(SpaceError, match="did you mean 'parameters'"):
        run(tmp_path, space)
    assert ran == []


@pytest.mark.parametrize("name", ["demo", "default"])
def test_the_spaces_of_the_package_are_found(name: str) -> None:
    assert builtin_space(name).is_file()


def test_an_unknown_space_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^dmeo: "):
        builtin_space("dmeo")
