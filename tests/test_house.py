"""The rules of the house that cost nothing to hold."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ich_ray
from ich_ray import errors
from tests import tree

PACKAGE = Path(ich_ray.__file__).parent
REPOSITORY = PACKAGE.parent

# A module may import from its own level and from those before it.
LEVELS = [
    {"errors", "spreadsheet", "vocabulary"},
    {
        "storage",
        "terminal",
        "cache",
        "statistics",
        "ct",
        "local_ray",
        "machines",
        "notify",
        "progress",
        "ray_data",
        "ray_internals",
        "registry",
        "runtime",
        "results",
        "search_records",
        "trial_records",
        "usage",
        "versions",
    },
    {"model"},
    {"data"},
    {"training"},
    {"search"},
    {"bundle"},
    {"refit", "assess"},
    {"html_report", "side_by_side"},
    {"cluster", "pipeline", "watch"},
    {"display", "display_figures"},
    {"verbs"},
    {"published"},
    {"cli"},
]
# The functional core must run where Ray is not installed.
MAY_IMPORT_RAY = {
    "cluster.doctor",
    "cluster.jobs",
    "cluster.ray_errors",
    "local_ray",
    "machines",
    "ray_data",
    "ray_internals",
    "refit.confirm",
    "refit.ray_train",
    "runtime",
    "search.accelerators",
    "search.cluster_resources",
    "search.preflight",
    "search.tune.driver",
    "search.tune.ledger_callback",
    "search.tune.growing",
    "search.tune.lent_slots",
    "search.tune.lost_attempts",
    "search.tune.watchdog",
    "search.tune.measure_speed",
    "search.tune.multi_worker_trial",
    "search.tune.node_losses",
    "search.tune.preemption",
    "search.tune.quiet_tune",
    "search.tune.sampler",
    "search.tune.scheduler",
    "search.tune.steering",
    "search.tune.train_workers",
    "search.tune.trial",
    "search.tune.trial_retries",
    "search.tune.trial_shares",
    "search.tune.unstarted_machines",
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def level(part: str) -> int:
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_one_way(path: Path) -> None:
    own = level(dotted(path).split(".")[0])
    for name in imports(path):
        if name.startswith("ich_ray."):
            assert level(name.split(".")[1]) <= own, f"{dotted(path)} imports {name}"


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        (
            "results",
            {
                "ich_ray.errors",
                "ich_ray.registry",
                "ich_ray.search_records",
                "ich_ray.storage",
                "ich_ray.trial_records",
                "ich_ray.usage",
            },
        ),
        ("search_records", {"ich_ray.storage", "ich_ray.trial_records", "ich_ray.vocabulary"}),
        ("trial_records", {"ich_ray.storage", "ich_ray.usage"}),
    ],
)
def test_results_need_little_of_the_ground_floor(module: str, needs: set[str]) -> None:
    ours = {name for name in imports(PACKAGE / f"{module}.py") if name.startswith("ich_ray")}
    assert ours <= needs


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_the_rim_imports_ray(path: Path) -> None:
    if any(name.split(".")[0] == "ray" for name in imports(path)):
        assert dotted(path) in MAY_IMPORT_RAY


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_one_module_imports_what_ray_keeps_to_itself(path: Path) -> None:
    private = [name for name in imported_names(path) if is_private_of_ray(name)]
    assert private == [] or dotted(path) == "ray_internals"


def test_what_ray_keeps_to_itself_is_known_by_its_name() -> None:
    assert [name for name in imported_names(PACKAGE / "ray_internals.py") if is_private_of_ray(name)] == [
        "ray._private.auto_init_hook",
        "ray._private.services",
        "ray._private.worker",
        "ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS",
        "ray._private.state.state",
        "ray._private.worker.get_dashboard_url",
        "ray._raylet.AuthenticationTokenLoader",
        "ray._raylet.Config",
        "ray._raylet.GcsClient",
        "ray.autoscaler.v2.schema.ClusterStatus",
        "ray.autoscaler.v2.sdk.get_cluster_status",
        "ray.autoscaler.v2.utils.is_autoscaler_v2",
        "ray.experimental.internal_kv._internal_kv_get",
        "ray._private.grpc_utils.init_grpc_channel",
    ]
    assert not is_private_of_ray("ray.tune.experiment.Trial")


def imported_names(path: Path) -> list[str]:
    """Every name that a module imports, with the module that it comes from."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_private_of_ray(name: str) -> bool:
    first, *parts = name.split(".")
    return first == "ray" and any(
        part.startswith("_") or part in {"autoscaler", "experimental", "internal", "v2"} for part in parts
    )


def modules() -> dict[str, Path]:
    """Every module, packages among them, by its name within the package."""
    found = {dotted(path).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in found.items() if name != "__init__"}  # which loads others when asked to


def imported_modules(path: Path, known: Iterable[str]) -> set[str]:
    """Those of ours that a module imports anywhere: at once, when called, or for its types."""
    ours = [name.removeprefix("ich_ray.") for name in imported_names(path) if name.startswith("ich_ray.")]
    return {name if name in known else name.rpartition(".")[0] for name in ours}


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    graph = {name: imported_modules(path, known) for name, path in known.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_imports_are_seen_when_called_and_for_types(tmp_path: Path) -> None:
    source = (
        "if TYPE_CHECKING:\n    from ich_ray.ct.dicom import Slice\ndef later():\n    from ich_ray import progress\n"
    )
    (tmp_path / "module.py").write_text(source)
    assert imported_modules(tmp_path / "module.py", {"ct.dicom", "progress"}) == {"ct.dicom", "progress"}


def test_the_model_knows_nothing_of_data() -> None:
    found = {name: imported_modules(path, modules()) for name, path in modules().items() if name.startswith("model.")}
    assert "model.networks" in found
    assert not {name for names in found.values() for name in names if name.split(".")[0] == "data"}


def public_classes(path: Path) -> list[str]:
    body = ast.parse(path.read_text()).body
    return [node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_no_two_public_classes_have_one_name() -> None:
    names = Counter(name for path in MODULES for name in public_classes(path))
    assert names["Hyperparameters"] == 1
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_modules_have_one_name() -> None:
    counted = [path.stem for path in MODULES if path.parent.name != "verbs" and path.name not in {"run.py", "base.py"}]
    assert [name for name, count in Counter(counted).items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_says_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


LONGEST_FIRST_LINE = 99


def first_lines(node: ast.AST) -> Iterator[str]:
    """The first line of the docstring of a module, and of each public class and function in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield (ast.get_docstring(node) or "").partition("\n")[0]
    for child in getattr(node, "body", ()) if isinstance(node, ast.Module | ast.ClassDef) else ():
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield from first_lines(child)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=dotted)
def test_what_something_is_fits_in_a_line(path: Path) -> None:
    lines = list(first_lines(ast.parse(path.read_text())))
    assert [line for line in lines if len(line) > LONGEST_FIRST_LINE] == []


def test_a_first_line_that_is_too_long_is_seen() -> None:
    source = (
        f'"""One."""\nclass Two:\n    """Two."""\n    def three(self):\n        """{"x" * 100}\n\n        More."""\n'
    )
    assert list(map(len, first_lines(ast.parse(source)))) == [4, 4, 100]


# What reaches a terminal other than by terminal.py, and so unfiltered.
UNFILTERED = {
    "print", "pprint", "input", "sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__", "Console", "echo",
    "secho", "print_exc", "print_exception", "print_stack", "StreamHandler", "basicConfig", "breakpoint",
}  # fmt: skip
UNFILTERED_IMPORTS = {"stdout", "stderr", "pprint", "pp", "rprint"}


def unfiltered(source: str) -> set[str]:
    """The ways to the terminal that a module's source takes by itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            is_method = isinstance(node.func, ast.Attribute) and name == "print"
            found |= {name} & UNFILTERED - ({"print"} if is_method and not _is_module(node.func) else set())
        elif isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} & UNFILTERED
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names} & UNFILTERED_IMPORTS
            found |= {f"{node.module}.print" for alias in node.names if alias.name == "print"}
    return found


def _is_module(function: ast.Attribute) -> bool:
    return ast.unparse(function.value) in {"rich", "builtins"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_the_door_prints(path: Path) -> None:
    allowed = {"terminal": {"sys.stdout", "sys.stderr", "Console"}}
    assert unfiltered(path.read_text()) <= allowed.get(dotted(path), set())


@pytest.mark.parametrize(
    "source",
    [
        "print(name)",
        "print(name, file=sys.stderr)",
        "sys.stdout.write(name)",
        "sys.stderr.writelines([name])",
        "from sys import stdout",
        "typer.echo(name)",
        "click.secho(name)",
        "from rich import print as show",
        "rich.print(name)",
        "rich.console.Console().print(name)",
        "Console(stderr=True)",
        "traceback.print_exc()",
        "logging.basicConfig()",
        "def verb():\n    if name:\n        print(name)",
    ],
)
def test_a_print_beside_the_door_is_seen(source: str) -> None:
    assert unfiltered(source)


def names_used(path: Path) -> set[str]:
    """Every name and attribute that a module uses or imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return used | {part for name in imported_names(path) for part in name.split(".")}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_module_forks(path: Path) -> None:
    """A fork of a process with threads, as Ray's and PyTorch's are, may hang; some machines have none."""
    assert not names_used(path) & {"fork", "forkpty", "multiprocessing", "ProcessPoolExecutor", "preexec_fn"}


def test_importing_the_package_loads_neither_ray_nor_torch() -> None:
    code = "import sys, ich_ray, ich_ray.results; print([m for m in ('ray', 'torch', 'optuna') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_public_names_are_all() -> None:
    assert sorted(ich_ray._HOMES) == sorted(ich_ray.__all__)
    for name in ich_ray.__all__:
        assert getattr(ich_ray, name).__module__.startswith("ich_ray")
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = ich_ray.serach  # type: ignore[attr-defined]


def test_every_error_pickles_and_is_drawn() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(kind, errors.IchRayError):
            continue
        error = kind("reason", "detail") if kind in {errors.Rejection, errors.TrialFailure} else kind("a: b, got c")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(again) is kind
        assert str(again) == str(error)
        assert name in (errors.__doc__ or "")


def test_declared_names_exist() -> None:
    for path in MODULES:
        module = importlib.import_module(f"ich_ray.{dotted(path)}")
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{dotted(path)}.{name}"


def test_the_core_knows_no_published_system() -> None:
    """Its only mention is the import that lets them announce themselves."""
    names = re.compile(r"ich_ray\.published|report [AB]\b|report_[ab]\b|at_half|stacked_cnn", re.IGNORECASE)
    found = {path.relative_to(PACKAGE).as_posix(): names.findall(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {name: words for name, words in found.items() if words and not name.startswith("published/")} == {
        "__init__.py": ["ich_ray.published"]
    }


def test_the_page_of_rooms_holds_every_file_and_what_it_says_of_itself() -> None:
    assert tree.written() == tree.tree(), "run python -m tests.tree"


def test_nothing_names_a_registry_or_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout  # noqa: S607
    if not listed:
        pytest.skip("not a git checkout")
    forbidden = [
        "pypi" + ".org",
        "files.python" + "hosted",
        "--index" + "-url",
        "/work" + "/",
        "/root" + "/",
        "file" + "://",
    ]
    for name in listed.splitlines():
        path = REPOSITORY / name
        if path.suffix in {".py", ".md", ".txt", ".toml", ".yaml", ".yml", ".html", ""} and path.is_file():
            text = path.read_text()
            assert not [word for word in forbidden if word in text], name
