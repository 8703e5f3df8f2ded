"""Whether machines are fit and safe to run a search: facts in, findings out.

Asks no machine anything. Devices, disks and storage are judged in modules of their own.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ich_ray.cluster.findings import Finding
from ich_ray.cluster.hardware_checks import check_devices, check_disks, check_metadata
from ich_ray.cluster.storage_checks import check_storage
from ich_ray.versions import DRIVER, differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ich_ray.cluster.machine_facts import Facts
    from ich_ray.cluster.secrets import Secret
    from ich_ray.versions import Difference

__all__ = ["check", "check_cluster_file", "skew_s"]

# Object stores refuse requests whose clock is 15 minutes off; records of two machines are hard to compare long before.
_GOOD_SKEW_S, _WORST_SKEW_S = 2.0, 300.0
_DASHBOARD_PORT = 8265
_MISSING = "missing"


def check(
    machines: Sequence[Facts], dashboard: str | None, is_cluster: bool, of_storage: Sequence[Finding] = ()
) -> list[Finding]:
    """All findings, in the order in which they would hurt; nothing is ok of which something is an error.

    Args:
        machines: one record each.
        dashboard: `host:port` that it listens on, None without one.
        is_cluster: whether `machines` are the nodes of a cluster, not just this one.
        of_storage: what the process that asks them has found there.
    """
    heard = [machine for machine in machines if not machine.silent]
    found = [
        *_silent(machines),
        *_versions(machines),
        *_unanswered(heard),
        *check_devices(heard),
        *of_storage,
        *check_storage(heard),
        *_folders(heard),
        *_clocks(heard if is_cluster else ()),
        *check_disks(heard),
        *check_metadata(heard),
        *_token(heard, is_cluster),
        *_ports(heard, dashboard, is_cluster),
    ]
    broken = {finding.check for finding in found if finding.state == "error"}
    return [finding for finding in found if finding.state != "ok" or finding.check not in broken]


def _silent(machines: Iterable[Facts]) -> Iterable[Finding]:
    for machine in machines:
        if machine.silent:
            yield Finding(
                "error",
                "machine",
                f"{machine.machine}: must tell what it has, got {machine.silent}",
                "look at it with `ray status`; if it has another version of this package, "
                "`ich-ray submit -- doctor` sends this one along",
                (machine.machine,),
            )


def _unanswered(machines: Iterable[Facts]) -> Iterable[Finding]:
    for machine in machines:
        for name, why in machine.unanswered.items():
            yield Finding(
                "error",
                name,
                f"{machine.machine}: this check must come to its end, got {why}",
                "look there for a mount whose server is gone (`df`), or a device that hangs",
                (machine.machine,),
            )


def _versions(machines: Iterable[Facts]) -> Iterable[Finding]:
    """What a search would refuse, or could not do, is an error; other differences are said there, too."""
    told = [machine for machine in machines if machine.versions]
    if not told:
        return
    usual = {
        name: Counter(machine.versions.get(name, _MISSING) for machine in told).most_common(1)[0][0]
        for name in told[0].versions
        if name != DRIVER
    }
    odd: dict[str, list[tuple[str, Difference]]] = {}
    for machine in told:
        for difference in differences(usual, machine.versions):
            odd.setdefault(difference.name, []).append((machine.machine, difference))
    for name, found in odd.items():
        shown = ", ".join(f"{machine} {difference.there}" for machine, difference in found)
        yield Finding(
            "error" if any(each.matters or _MISSING in each[1:3] for _, each in found) else "warning",
            "versions",
            f"{name} must be the same on all machines, got {usual[name]} but on {shown}",
            "run the set-up again on those: `ray up cluster.yaml`",
            tuple(machine for machine, _ in found),
        )
    for name in (name for name, version in usual.items() if version == _MISSING and name not in odd):
        remedy = "install this package with its dependencies"
        yield Finding("error", "versions", f"{name} must be installed, got none", remedy)
    shown = ", ".join(f"{name} {usual[name]}" for name in ("ich_ray", "ray", "torch", "python"))
    yield Finding("ok", "versions", f"{len(told)} machine{'s' * (len(told) > 1)}: {shown}")


def _folders(machines: Sequence[Facts]) -> Iterable[Finding]:
    """Folders of the user: Ray's, and the home, which is needed for little."""
    for machine in machines:
        if machine.ray_folder:
            found, _, remedy = machine.ray_folder.partition("; ")
            yield Finding("error", "folder", found, remedy, (machine.machine,))
        if machine.home:
            yield Finding(
                "warning",
                "home",
                f"{machine.machine}: the home of its user must be writable for keys and copies, got {machine.home}",
                "name files elsewhere: ICH_RAY_KEY_FILE for `prepare`, ICH_RAY_CACHE for remote datasets, TORCH_HOME "
                "for weights",
                (machine.machine,),
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
                "error" if abs(skew) > _WORST_SKEW_S else "warning",
                "clock",
                f"{machine.machine}: must agree within {_GOOD_SKEW_S:g} s, got {skew:+.1f} s",
                "switch on time synchronization there (`timedatectl set-ntp true`): times of the ledger and tokens are "
                "compared between machines",
                (machine.machine,),
            )
    if machines and all(abs(skew_s(machine)) <= _GOOD_SKEW_S for machine in machines):
        yield Finding("ok", "clock", f"all within {_GOOD_SKEW_S:g} s")


def _token(machines: Sequence[Facts], is_cluster: bool) -> Iterable[Finding]:
    for machine in machines:
        mode = machine.token_mode
        if mode is not None and mode & 0o077:
            yield Finding(
                "error" if is_cluster else "warning",
                "token",
                f"{machine.machine}: only its user may read {machine.token_file}, got mode {mode:04o}",
                f"`chmod 600 {machine.token_file}`, and make a new token if others use that machine",
                (machine.machine,),
            )
    off = [machine.machine for machine in machines if machine.auth_mode.lower() != "token"]
    if is_cluster and off:
        yield Finding(
            "error",
            "token",
            f"every machine must demand it, got RAY_AUTH_MODE unset on {', '.join(off)}",
            "start Ray with RAY_AUTH_MODE=token as cluster.yaml does: whoever reaches its ports can run anything there",
            tuple(off),
        )
    elif is_cluster and machines:
        yield Finding("ok", "token", "demanded by every machine")


def _ports(machines: Sequence[Facts], dashboard: str | None, is_cluster: bool) -> Iterable[Finding]:
    port = int(dashboard.rpartition(":")[2]) if dashboard else _DASHBOARD_PORT
    heads = [machine for machine in machines if machine.is_head or not is_cluster]
    exposed = [machine.machine for machine in heads if port in machine.open_ports]
    if exposed:
        yield Finding(
            "error",
            "dashboard",
            f"must listen on 127.0.0.1 only, got port {port} of {', '.join(exposed)} open to other machines",
            "start the head with --dashboard-host=127.0.0.1 and reach it with `ray dashboard cluster.yaml`",
            tuple(exposed),
        )
    elif dashboard:
        yield Finding("ok", "dashboard", f"port {port} is closed to other machines")


def check_cluster_file(name: str, secrets: Sequence[Secret]) -> list[Finding]:
    """What a cluster file gives away to whoever reads it."""
    remedy = "take it out; machines read secrets from their environment or a file of mode 0600"
    found = [
        Finding("error", "secrets", f"{name} line {secret.line}: must hold none, got {secret.kind}", remedy)
        for secret in secrets
    ]
    return found or [Finding("ok", "secrets", f"none in {name}")]
