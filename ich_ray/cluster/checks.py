"""Whether machines are fit and safe to run a search: facts in, findings out.

Asks no machine anything. A problem would break a search or let strangers in; a warning makes it slow or may become a
problem.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ich_ray.cluster.machine_facts import Facts
    from ich_ray.cluster.secrets import Secret

__all__ = ["Finding", "check", "check_cluster_file", "skew_s"]

_GIB = 1 << 30
# Ray stops writing to a disk that is 95 % full; checkpoints and spilled blocks of one search take a few GiB.
_LEAST_DISK, _GOOD_DISK = 2 * _GIB, 20 * _GIB
# The object store falls back to slow files below what `prepare` keeps in flight; Docker gives 64 MiB.
_GOOD_SHM = 2 * _GIB
# Object stores refuse requests whose clock is 15 minutes off; records of two machines are hard to compare long before.
_GOOD_SKEW_S, _WORST_SKEW_S = 2.0, 300.0
_DASHBOARD_PORT = 8265


@dataclass(frozen=True)
class Finding:
    """One line of `ich-ray doctor`: what is so, and what to do about it."""

    level: Literal["ok", "warning", "problem"]
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:8}{self.what:10}{self.found}{'; ' if self.remedy else ''}{self.remedy}"


def check(machines: Sequence[Facts], dashboard: str | None, is_cluster: bool) -> list[Finding]:
    """All findings, in the order in which they would hurt; nothing is ok of which something is a problem.

    Args:
        machines: one record each.
        dashboard: `host:port` that it listens on, None without one.
        is_cluster: whether `machines` are the nodes of a cluster, not just this one.
    """
    found = [
        *_versions(machines),
        *_gpus(machines),
        *_storage(machines),
        *_folders(machines),
        *_clocks(machines if is_cluster else ()),
        *_disks(machines),
        *_token(machines, is_cluster),
        *_ports(machines, dashboard, is_cluster),
    ]
    broken = {finding.what for finding in found if finding.level == "problem"}
    return [finding for finding in found if finding.level != "ok" or finding.what not in broken]


def _versions(machines: Sequence[Facts]) -> Iterable[Finding]:
    for name in machines[0].versions:
        count = Counter(machine.versions.get(name, "missing") for machine in machines)
        usual = count.most_common(1)[0][0]
        if len(count) > 1:
            odd = [f"{m.machine} {m.versions.get(name, 'missing')}" for m in machines if m.versions.get(name) != usual]
            yield Finding(
                "problem",
                "versions",
                f"{name} must be the same on all machines, got {usual} but on {', '.join(odd)}",
                "run the set-up again on those: `ray up cluster.yaml`",
            )
        elif usual == "missing":
            yield Finding(
                "problem",
                "versions",
                f"{name} must be installed, got none",
                "install this package with its dependencies",
            )
    shown = ", ".join(f"{name} {machines[0].versions[name]}" for name in ("ich_ray", "ray", "torch", "python"))
    yield Finding("ok", "versions", f"{len(machines)} machine{'s' * (len(machines) > 1)}: {shown}")


def _gpus(machines: Sequence[Facts]) -> Iterable[Finding]:
    for machine in machines:
        seen = machine.torch_gpus
        if isinstance(seen, str):
            yield Finding("problem", "gpus", f"{machine.machine}: torch must load, got {seen}", "install torch again")
        elif machine.gpus is not None and seen < machine.gpus:
            yield Finding(
                "problem",
                "gpus",
                f"{machine.machine}: torch must see the {machine.gpus:g} that Ray promises, got {seen}",
                "compare the driver (`nvidia-smi`) with torch's CUDA, or correct `resources` of the node",
            )
    total = sum(machine.torch_gpus for machine in machines if isinstance(machine.torch_gpus, int))
    yield Finding("ok", "gpus", f"torch sees {total}" + ("" if total else ", so trials run on CPUs"))


def _storage(machines: Sequence[Facts]) -> Iterable[Finding]:
    asked = [machine for machine in machines if machine.storage is not None]
    for machine in asked:
        if machine.storage:
            yield Finding(
                "problem",
                "storage",
                f"{machine.machine}: must read and write it, got {machine.storage}",
                "mount it at the same path with write access, or give the node credentials for it",
            )
    if asked and not any(machine.storage for machine in asked):
        yield Finding("ok", "storage", f"read and written from {len(asked)} of {len(machines)}")


def _folders(machines: Sequence[Facts]) -> Iterable[Finding]:
    """Folders of the user: Ray's, and the home, which is needed for little."""
    for machine in machines:
        if machine.ray_folder:
            found, _, remedy = machine.ray_folder.partition("; ")
            yield Finding("problem", "folder", found, remedy)
        if machine.home:
            yield Finding(
                "warning",
                "home",
                f"{machine.machine}: the home of its user must be writable for keys and copies, got {machine.home}",
                "name files elsewhere: ICH_RAY_KEY_FILE for `prepare`, ICH_RAY_CACHE for remote datasets, TORCH_HOME "
                "for weights",
            )


def skew_s(machine: Facts) -> float:
    """The least by which a clock is off, in seconds.

    0 if the order of sending, answering and receiving allows it. The machine began after `sent` and answered before
    `received`, so with its clock ahead by s both ``began - s >= sent`` and ``answered - s <= received`` hold: s lies
    between `answered - received` and `began - sent`.
    """
    low, high = machine.answered - machine.received, machine.began - machine.sent
    return low if low > 0 else high if high < 0 else 0.0


def _clocks(machines: Sequence[Facts]) -> Iterable[Finding]:
    for machine in machines:
        skew = skew_s(machine)
        if abs(skew) > _GOOD_SKEW_S:
            yield Finding(
                "problem" if abs(skew) > _WORST_SKEW_S else "warning",
                "clock",
                f"{machine.machine}: must agree within {_GOOD_SKEW_S:g} s, got {skew:+.1f} s",
                "switch on time synchronization there (`timedatectl set-ntp true`)",
            )
    if machines and all(abs(skew_s(machine)) <= _GOOD_SKEW_S for machine in machines):
        yield Finding("ok", "clock", f"all within {_GOOD_SKEW_S:g} s")


def _disks(machines: Sequence[Facts]) -> Iterable[Finding]:
    for machine in machines:
        free, shared = machine.disk_free_bytes, machine.shm_free_bytes
        if free < _GOOD_DISK:
            yield Finding(
                "problem" if free < _LEAST_DISK else "warning",
                "disk",
                f"{machine.machine}: {_GOOD_DISK // _GIB} GiB free for Ray's files are good, got {free / _GIB:.1f}",
                "free some, or start Ray with --temp-dir on a larger disk",
            )
        if shared is not None and shared < _GOOD_SHM:
            yield Finding(
                "warning",
                "shm",
                f"{machine.machine}: {_GOOD_SHM // _GIB} GiB free in /dev/shm are good, got {shared / _GIB:.1f}",
                "give the container more (`--shm-size`), or `prepare` works from disk",
            )
    least = min(machine.disk_free_bytes for machine in machines)
    if least >= _GOOD_DISK:
        yield Finding("ok", "disk", f"at least {least / _GIB:.0f} GiB free")


def _token(machines: Sequence[Facts], is_cluster: bool) -> Iterable[Finding]:
    for machine in machines:
        mode = machine.token_mode
        if mode is not None and mode & 0o077:
            yield Finding(
                "problem" if is_cluster else "warning",
                "token",
                f"{machine.machine}: only its user may read {machine.token_file}, got mode {mode:04o}",
                f"`chmod 600 {machine.token_file}`, and make a new token if others use that machine",
            )
    off = [machine.machine for machine in machines if machine.auth_mode.lower() != "token"]
    if is_cluster and off:
        yield Finding(
            "problem",
            "token",
            f"every machine must demand it, got RAY_AUTH_MODE unset on {', '.join(off)}",
            "start Ray with RAY_AUTH_MODE=token as cluster.yaml does: whoever reaches its ports can run anything there",
        )
    elif is_cluster:
        yield Finding("ok", "token", "demanded by every machine")


def _ports(machines: Sequence[Facts], dashboard: str | None, is_cluster: bool) -> Iterable[Finding]:
    port = int(dashboard.rpartition(":")[2]) if dashboard else _DASHBOARD_PORT
    heads = [machine for machine in machines if machine.is_head or not is_cluster]
    exposed = [machine.machine for machine in heads if port in machine.open_ports]
    if exposed:
        yield Finding(
            "problem",
            "dashboard",
            f"must listen on 127.0.0.1 only, got port {port} of {', '.join(exposed)} open to other machines",
            "start the head with --dashboard-host=127.0.0.1 and reach it with `ray dashboard cluster.yaml`",
        )
    elif dashboard:
        yield Finding("ok", "dashboard", f"port {port} is closed to other machines")


def check_cluster_file(name: str, secrets: Sequence[Secret]) -> list[Finding]:
    """What a cluster file gives away to whoever reads it."""
    remedy = "take it out; machines read secrets from their environment or a file of mode 0600"
    found = [
        Finding("problem", "secrets", f"{name} line {secret.line}: must hold none, got {secret.kind}", remedy)
        for secret in secrets
    ]
    return found or [Finding("ok", "secrets", f"none in {name}")]
