"""One set-up of Ray Data: order, functions and pools of processes, and what an item that fails says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from ich_ray.errors import IchRayError
from ich_ray.ray_data import _reason, map_in_order
from ich_ray.runtime import connected

OURS = {"rule": "demo: every item must end", "hint": "try again"}


def times(factor: int, item: dict[str, Any]) -> pa.Table:
    if item["number"] == 0:
        time.sleep(0.5)  # the others overtake it
    return pa.table({"found": [factor * item["number"] + len(item["files"])]})


class Pooled:
    def __init__(self, factor: int) -> None:
        if factor < 0:
            raise OSError("no bundle")
        self.factor = factor

    def __call__(self, item: dict[str, Any]) -> pa.Table:
        return times(self.factor, item)


def failing(item: dict[str, Any]) -> pa.Table:
    raise ValueError(f"planted in {item['number']}")


def found(worker: Any, *arguments: Any) -> list[int]:
    items = [{"number": number, "files": ["a", "b"]} for number in range(5)]
    return [table["found"][0].as_py() for table in map_in_order(items, worker, *arguments, **OURS)]


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with connected(cpus=2):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("worker", [times, Pooled])
def test_tables_come_in_the_order_of_the_items(ray: None, worker: Any) -> None:
    assert found(worker, 10) == [2, 12, 22, 32, 42]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "arguments", "problem"),
    [(failing, (), r"ValueError: planted in \d"), (Pooled, (-1,), "OSError: no bundle")],
)
def test_an_item_that_fails_says_why(ray: None, worker: Any, arguments: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(IchRayError, match=f"^demo: every item must end, got {problem}; try again$"):
        found(worker, *arguments)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("ray::work()\nValueError: one\n\nray::work()\nray.exceptions.UserCodeException: UDF failed\nTo change",
         "ValueError: one"),
        ("KeyError: 1\n\nDuring handling\n\nich_ray.errors.ConfigError: weights: must be there",
         "ich_ray.errors.ConfigError: weights: must be there"),
        ("The node died", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_last_error_of_a_traceback_is_the_reason(message: str, said: str) -> None:
    assert _reason(RuntimeError(message)) == said
