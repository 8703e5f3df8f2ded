from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import is_typeddict

import pytest
import typer.main

from ich_ray import cli
from ich_ray.search.request import SearchKeywords, SearchRequest, TrialKeywords, TrialResources

NAMED = {"dataset", "space", "out"}


@pytest.mark.parametrize(("record", "keywords"), [(TrialResources, TrialKeywords), (SearchRequest, SearchKeywords)])
def test_keywords_are_the_fields_of_the_record(record: type, keywords: type) -> None:
    assert is_typeddict(keywords)
    of_keywords = {name: kind.__forward_arg__ for name, kind in inspect.get_annotations(keywords).items()}
    of_record = {field.name: field.type for field in fields(record) if field.name not in NAMED}
    assert of_keywords == of_record


def test_a_request_is_what_the_resources_of_its_trials_are() -> None:
    asked = SearchRequest("data", "space.yaml", "out", trials=7, gpus_per_trial=0.5)
    assert (asked.dataset, asked.space, asked.out, asked.trials) == ("data", "space.yaml", "out", 7)
    assert (asked.gpus_per_trial, asked.cpus_per_trial, asked.concurrent, asked.placement) == (0.5, None, None, "auto")
    with pytest.raises(FrozenInstanceError):
        asked.trials = 8  # type: ignore[misc]


def test_every_field_of_a_request_is_a_flag_and_every_flag_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = {
        "--trials": 7, "--gpus-per-trial": 0.5, "--cpus-per-trial": 3, "--workers-per-trial": 1, "--hours": 2.5,
        "--gpu-hours": 1.5, "--concurrent": 4, "--seed": 9, "--warm-start": "before", "--placement": "host",
        "--address": "head:6379", "--resume": True, "--share-trunks": True, "--no-grow": True,
        "--notify": "https://hooks.example/x",
        "--export": "tensorboard=events",
        "--target": 0.9, "--patience": "40 trials",
    }  # fmt: skip
    asked: list[SearchRequest] = []

    def note(request: SearchRequest) -> None:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("ich_ray.search.run.run_request", note)
    monkeypatch.setattr("ich_ray.search.plan.plan_report.plan_request", note)
    words = [str(word) for flag, value in typed.items() for word in ((flag,) if value is True else (flag, value))]
    for plan in ([], ["--plan"]):
        cli.call(["search", "data", "--space", "space.yaml", "--out", "out", *words, *plan])
    fields_of = {flag.removeprefix("--").replace("-", "_"): value for flag, value in typed.items()}
    fields_of["warm_start"], fields_of["export"] = ["before"], ["tensorboard=events"]  # repeated for several
    fields_of["grow"] = not fields_of.pop("no_grow")
    assert asked == [SearchRequest("data", "space.yaml", "out", **fields_of)] * 2  # type: ignore[arg-type]
    flags = {field.name for field in fields(SearchRequest)}
    assert flags == {*fields_of, *NAMED}
    verb = typer.main.get_group(cli.app).commands["search"]
    assert {option.name for option in verb.params} - flags == {"plan", "as_json"}


def test_the_address_for_messages_is_in_no_representation_of_a_request() -> None:
    assert "hooks" not in repr(SearchRequest("data", "space.yaml", "out", notify="https://hooks.example/x"))
