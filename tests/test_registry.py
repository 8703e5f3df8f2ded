from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ich_ray import registry
from ich_ray.errors import ConfigError
from ich_ray.registry import Registry, announce, registered_here, repeat


class Round:
    pass


class Square:
    pass


@pytest.fixture
def shapes() -> Iterator[Registry[object]]:
    yield Registry("shapes", {"point": "math:pi"}, home=__name__)
    del registry._REGISTRIES["shapes"]
    registry._installed.cache_clear()


def test_a_variant_is_found_by_name(shapes: Registry[object]) -> None:
    found = Round()
    shapes.register("round", found)
    assert shapes["round"] is found
    assert shapes["point"] == pytest.approx(3.14159, abs=1e-5)
    assert shapes.names() == ["point", "round"]
    assert ["round" in shapes, "point" in shapes, "oval" in shapes, 3 in shapes] == [True, True, False, False]


def test_what_is_announced_is_imported_when_it_is_asked_for(
    shapes: Registry[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_ANNOUNCED", {})
    announce("shapes", {"circle": "math:tau", "hole": "no_such_module:HOLE", "point": "math:inf"})
    announce("shapes", {"circle": "math:tau"})  # a module that is imported again
    assert shapes.names() == ["point", "circle", "hole"]
    assert shapes["circle"] == pytest.approx(6.28319, abs=1e-5)
    assert shapes["point"] == pytest.approx(3.14159, abs=1e-5), "its own"
    with pytest.raises(ConfigError, match="shapes: every name must be registered once, got circle again"):
        shapes.register("circle", Round())
    with pytest.raises(ConfigError, match="shapes: every name must be announced once, got circle again"):
        announce("shapes", {"circle": "math:e"})


def test_an_unknown_name_is_answered_with_the_nearest(shapes: Registry[object]) -> None:
    shapes.register("round", Round())
    with pytest.raises(ConfigError) as caught:
        shapes["rount"]
    assert str(caught.value) == (
        "shapes: must be one of point, round, got 'rount' (did you mean 'round'?); import the module that registers "
        "it first"
    )


def test_a_variant_of_a_family_is_made_of_its_name(shapes: Registry[object]) -> None:
    regular: Registry[object] = Registry("shapes", {"point": "math:pi"}, home=__name__, families={"sqrt": "math:sqrt"})
    assert ["sqrt/4" in regular, "sqrt" in regular, "sqrt/" in regular, "sqrt/a b" in regular] == [True, *[False] * 3]
    assert "sqrt/4" not in shapes
    families: Registry[str] = Registry("shapes", {}, home=__name__, families={"path": "pathlib:PurePosixPath"})
    assert str(families["path/star"]) == "star"
    assert families["path/star"] is families["path/star"]
    assert (families.names(), families.patterns) == ([], ["path/NAME"])
    with pytest.raises(ConfigError, match="shapes: must be one of path/NAME, got 'paths/star'"):
        families["paths/star"]


def test_a_function_is_not_replaced_by_another(shapes: Registry[object]) -> None:
    shapes.register("area", max)
    shapes.register("area", max)
    with pytest.raises(ConfigError, match="every name must be registered once, got area again"):
        shapes.register("area", min)


def test_a_name_belongs_to_one_class(shapes: Registry[object]) -> None:
    shapes.register("round", Round())
    again = Round()
    shapes.register("round", again)
    assert shapes["round"] is again
    for name, variant in (("round", Square()), ("point", Square())):
        with pytest.raises(ConfigError, match=f"every name must be registered once, got {name} again"):
            shapes.register(name, variant)
    with pytest.raises(ConfigError, match=r"must be letters, digits, _, \. and -, got 'a b'"):
        shapes.register("a b", Square())


def test_another_process_repeats_what_was_registered(shapes: Registry[object]) -> None:
    shapes.register("round", Round())
    travelling = pickle.dumps([one for one in registered_here() if one.kind == "shapes"])
    there: Registry[object] = Registry("shapes", {}, home=__name__)
    repeat(pickle.loads(travelling))  # noqa: S301
    assert type(there["round"]) is Round


def test_an_installed_package_needs_no_import(
    shapes: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "oval_shapes.py").write_text("OVAL = 'oval'\n")
    info = tmp_path / "oval_shapes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oval-shapes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ich_ray.shapes]\noval = oval_shapes:OVAL\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    registry._installed.cache_clear()
    assert shapes.names() == ["point", "oval"]
    assert "oval_shapes" not in sys.modules
    assert shapes["oval"] == "oval"
