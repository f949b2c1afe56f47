"""What `behaviorguard doctor` looks at: each check says what it found and, where something is amiss, what to do."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

from infra import pki
from infra.stack.account import can_enter, reachable_folder, unprivileged_account
from infra.stack.errors import StackError
from infra.stack.hsm import has_master_key, share_file
from infra.stack.kafka import apache_obstacle, java_major, libraries_folder
from infra.stack.leftovers import leftovers
from infra.stack.ports import holder, is_free
from infra.stack.services import SERVICES, WORKLOADS
from infra.stack.state import is_supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.settings import StackSettings

Verdict = Literal["ok", "warning", "error"]
GIB = 2**30
DISK_NEEDED = 2 * GIB
MEMORY_NEEDED = 2 * GIB
FILES_NEEDED = 1024
RENEW_DAYS = 30
NOT_BEFORE = 1_767_225_600
"""1 January 2026: a clock that shows an earlier time is wrong."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `action` is empty when there is nothing to do."""

    check: str
    verdict: Verdict
    found: str
    action: str = ""


def examine(settings: StackSettings) -> list[Finding]:
    """Look at everything. Changes nothing, starts nothing."""
    running = is_supervised(settings.run)
    return [
        _python(),
        _memory(),
        _files(),
        _disk(settings.data),
        *_folder(settings),
        _account(settings),
        _broker(settings),
        *_ports(settings, running=running),
        *_certificates(settings),
        _hsm(settings),
        _clock(),
        *([] if running else _left_behind(settings)),
    ]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < (3, 11):  # noqa: UP036 -- pip refuses older ones, a copied environment does not
        return Finding("python", "error", version, "install Python 3.11 or newer, remove .venv and run make up")
    return Finding("python", "ok", version)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    found = f"{free / GIB:.1f} GiB available"
    if free < MEMORY_NEEDED:
        return Finding("memory", "warning", found, f"free some: the stack needs about {MEMORY_NEEDED // GIB} GiB")
    return Finding("memory", "ok", found)


def _files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_NEEDED:
        return Finding("open files", "warning", f"limit {soft}", "raise it in this shell: ulimit -n 4096")
    return Finding("open files", "ok", f"limit {soft}")


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{free / GIB:.1f} GiB free for {folder}"
    if free < DISK_NEEDED:
        return Finding("disk", "error", found, "free some space, or set BEHAVIORGUARD_DATA to a folder on another disk")
    return Finding("disk", "ok", found)


def _folder(settings: StackSettings) -> Iterator[Finding]:
    place = _existing(settings.data)
    if not os.access(place, os.W_OK | os.X_OK):
        action = "set BEHAVIORGUARD_DATA to a folder of yours, or give it to your account"
        yield Finding("data folder", "error", f"{place} cannot be written", action)
        return
    exposed = [
        path
        for path in [*settings.secrets.glob("*"), *settings.pki.glob("*.key")]
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    if exposed:
        names = " ".join(str(path) for path in exposed)
        yield Finding("permissions", "error", "others may read secrets", f"chmod 600 {names}")
    else:
        yield Finding("permissions", "ok", f"{settings.data} can be written, secrets are private")


def _account(settings: StackSettings) -> Finding:
    try:
        account = unprivileged_account()
    except StackError as error:
        return Finding("account", "error", error.problem, error.action)
    if account is None:
        return Finding("account", "ok", "an ordinary user")
    if can_enter(account, _existing(settings.data)):
        return Finding("account", "ok", f"root: PostgreSQL runs as {account.name}")
    where = reachable_folder(account, settings.data / "postgres-main").parent
    return Finding("account", "ok", f"root, in a folder of its own: PostgreSQL runs as {account.name} in {where}")


def _broker(settings: StackSettings) -> Finding:
    if settings.kafka_bootstrap is not None:
        return Finding("broker", "ok", f"external: {settings.kafka_bootstrap}")
    if settings.broker == "embedded":
        return Finding("broker", "warning", "in-memory broker, as BEHAVIORGUARD_BROKER=embedded asks for: it forgets")
    obstacle = apache_obstacle(settings.cache)
    if obstacle is None:
        state = (
            "fetched" if libraries_folder(settings.cache).exists() else "to be fetched through Maven at the next start"
        )
        return Finding("broker", "ok", f"Apache Kafka on Java {java_major()}, {state}")
    action = "install Java 17 and Maven for Apache Kafka, or set BEHAVIORGUARD_KAFKA_BOOTSTRAP"
    verdict: Verdict = "error" if settings.broker == "apache" else "warning"
    return Finding("broker", verdict, f"in-memory broker, which forgets: {obstacle}", action)


def _ports(settings: StackSettings, *, running: bool) -> Iterator[Finding]:
    wanted = {
        "postgres_port": settings.postgres_dsn is None,
        "quantum_postgres_port": settings.quantum_dsn is None,
        "redis_port": settings.redis_url is None,
        "quantum_redis_port": settings.quantum_redis_url is None,
        "kafka_port": settings.kafka_bootstrap is None,
        "kafka_controller_port": settings.kafka_bootstrap is None,
    } | {service.port_setting: True for service in SERVICES}
    numbers = {name: int(getattr(settings, name)) for name, embedded in wanted.items() if embedded}
    if running:
        yield Finding("ports", "ok", "in use by the running stack")
        return
    taken = {name: number for name, number in numbers.items() if not is_free(number)}
    for name, number in taken.items():
        action = f"stop it, or choose another: BEHAVIORGUARD_{name.upper()}=<port>"
        yield Finding("ports", "error", f"{number} is taken by {holder(number)}", action)
    if not taken:
        yield Finding("ports", "ok", f"{', '.join(str(number) for number in sorted(numbers.values()))} are free")


def _certificates(settings: StackSettings) -> Iterator[Finding]:
    if not (settings.pki / "ca.crt").exists():
        yield Finding("certificates", "ok", "none yet; the first start issues them")
        return
    days = {}
    for workload in WORKLOADS:
        path = pki.identity(settings.pki, workload).cert
        if path.exists():
            days[workload] = pki.days_left(path)
    days["ca"] = pki.days_left(settings.pki / "ca.crt")
    first = min(days, key=days.__getitem__)
    found = f"{first} ends first, in {days[first]:.0f} days"
    if days[first] < 0:
        yield Finding("certificates", "error", found, "behaviorguard down, then behaviorguard up: it issues new ones")
    elif days[first] < RENEW_DAYS:
        yield Finding(
            "certificates", "warning", found, "restart the stack to renew: behaviorguard down && behaviorguard up"
        )
    else:
        yield Finding("certificates", "ok", found)


def _hsm(settings: StackSettings) -> Finding:
    if settings.hsm_unseal == "manual":
        return Finding("hsm", "ok", "starts sealed: behaviorguard hsm unseal, with its shares")
    share = share_file(settings)
    if has_master_key(settings) and not share.exists():
        action = "put it back, or set BEHAVIORGUARD_HSM_UNSEAL=manual and unseal with the shares of its ceremony"
        return Finding("hsm", "error", f"it has a master key, and the share in {share} is gone", action)
    action = "for keys that matter hold a ceremony: docs/runbook.md, HSM"
    return Finding("hsm", "warning", f"a software store whose only share lies beside it, in {share}", action)


def _clock() -> Finding:
    now = time.time()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < NOT_BEFORE:
        return Finding("clock", "error", found, "set the clock: certificates and event times depend on it")
    return Finding("clock", "ok", found)


def _left_behind(settings: StackSettings) -> Iterator[Finding]:
    names = sorted(leftovers(settings.run).values())
    if names:
        yield Finding(
            "processes", "error", f"left behind by a killed supervisor: {', '.join(names)}", "behaviorguard down"
        )
