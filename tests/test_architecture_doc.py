"""docs/architecture.md has the rooms of the package, each on the floor that tests/test_house.py holds it to."""

from __future__ import annotations

import re

from tests.test_house import LEVELS, MAY_IMPORT_RAY, PACKAGE, REPOSITORY

DOC = (REPOSITORY / "docs/architecture.md").read_text()
# By floor, the cell of its rooms: `runtime` [Ray], `storage/`, ...
FLOORS = {int(floor): rooms for floor, rooms in re.findall(r"^\| (\d+) \| (.*?) \|", DOC, re.MULTILINE)}


def test_every_room_stands_on_its_floor() -> None:
    assert {floor: set(re.findall(r"`(\w+)/?`", rooms)) for floor, rooms in FLOORS.items()} == dict(enumerate(LEVELS))


def test_folders_have_a_slash_and_modules_none() -> None:
    named = {name for rooms in FLOORS.values() for name in re.findall(r"`(\w+/?)`", rooms)}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert named == modules | {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}


def test_rooms_that_may_import_ray_are_marked() -> None:
    marked = {name for rooms in FLOORS.values() for name in re.findall(r"`(\w+)/?` \[Ray\]", rooms)}
    assert marked == {module.split(".")[0] for module in MAY_IMPORT_RAY}
