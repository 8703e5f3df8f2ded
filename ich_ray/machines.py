"""Machines of a cluster: who is up, tasks on one by its id, and the question asked of each first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.versions import DRIVER, Difference, differences, version_reader

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ask_machines", "is_gone", "nodes_up", "on_node", "staying", "with_versions"]

_ANSWER_WITHIN_S = 30


def nodes_up() -> list[dict[str, Any]]:
    """What Ray says of each machine that is up."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def staying(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that will not be taken away: Ray starts nothing on the others."""
    from ich_ray.ray_internals import draining_nodes

    leaving = draining_nodes()
    return [node for node in nodes if node["NodeID"] not in leaving]


def is_gone(node: str) -> bool:
    """Whether a machine, by Ray's id, is no longer there, or will be taken away."""
    return node not in {one["NodeID"] for one in staying(nodes_up())}


def on_node(node: str, function: Any, *arguments: Any) -> Any:
    """A reference to what `function` returns on the node of that id; it waits for no resources."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)


def ask_machines(look: Callable[..., str] | None = None, *arguments: Any) -> None:
    """Let each machine tell the versions of its code, and look whether all is as the work needs it.

    Versions that differ without an effect on results are said, drivers of accelerators that differ, and machines that
    went away meanwhile.

    Args:
        look: runs on a machine and returns what is wrong there, with what to do unless it is a path that others see;
            empty if nothing is.
        arguments: of `look`.

    Raises:
        ConfigError: a machine computes with other code, something is wrong on it, or it does not answer; it is named.
    """
    import ray

    read_versions = version_reader()
    here, question = read_versions(), with_versions(read_versions, look, arguments)
    asked = {on_node(node["NodeID"], question): node for node in nodes_up()}
    drivers: dict[str, str] = {}
    gone = 0
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_WITHIN_S)
    for reference in ready:
        machine = asked[reference]["NodeManagerAddress"]
        try:
            there, problem = ray.get(reference)
        except ray.exceptions.RayError as error:
            gone += 1
            # The task asks for no resources: where it cannot be scheduled the machine is lacking, and nothing else.
            unscheduled = isinstance(error, ray.exceptions.TaskUnschedulableError)
            if gone < len(asked) and (unscheduled or is_gone(asked[reference]["NodeID"])):
                say(f"machine {machine} went away while it was asked which versions it has")
                continue
            raise ConfigError(
                f"machine {machine}: must answer which versions it has, got {type(error).__name__}; check it "
                "with `ray status`"
            ) from None
        _compare(machine, differences(here, there))
        drivers |= {machine: there[DRIVER]} if DRIVER in there else {}
        if problem:
            remedy = "" if "; " in problem else "; use a folder that all machines share, or a URI"
            raise ConfigError(f"machine {machine}: {problem}{remedy}")
    if late:
        where = asked[late[0]]["NodeManagerAddress"]
        raise ConfigError(
            f"machine {where}: must answer within {_ANSWER_WITHIN_S} s, got nothing; check it with `ray status`"
        )
    if len({*drivers.values()}) > 1:
        say(f"machines have different drivers: {', '.join(f'{each} {drivers[each]}' for each in sorted(drivers))}")


def with_versions(
    read_versions: Callable[[], dict[str, str]], look: Callable[..., Any] | None, arguments: tuple[Any, ...]
) -> Callable[[], tuple[dict[str, str], Any]]:
    """What a machine is asked: its versions, and what `look` returns there, or why it cannot, as a text.

    It needs nothing of this package there until versions are read.
    """
    from ray import cloudpickle

    packed = cloudpickle.dumps((look, arguments))  # type: ignore[no-untyped-call]

    def answer() -> tuple[dict[str, str], Any]:
        import pickle

        versions = read_versions()
        try:
            look, arguments = pickle.loads(packed)  # noqa: S301  (of the driver, as all that Ray brings here)
            return versions, look(*arguments) if look else ""
        except Exception as error:  # noqa: BLE001  (other code, above all)
            return versions, f"must be able to look at its files, got {type(error).__name__}"

    return answer


def _compare(machine: str, found: list[Difference]) -> None:
    """Refuse what changes results, the worst first, and say the rest."""
    for name, here, there, matters in found:
        if matters:
            also = ", or send the command there with `ich-ray submit`, which takes this one along"
            raise ConfigError(
                f"machine {machine}: {name} must be {here} as in this process, got {there}; install the same there"
                + also * (name == "ich_ray")
            )
    if found:
        told = ", ".join(f"{name} {there} (here {here})" for name, here, there, _ in found)
        say(f"machine {machine} has other versions, which change no result: {told}")
