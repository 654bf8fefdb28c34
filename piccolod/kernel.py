"""The kernel of piccolod as one table: every process, what it needs, who restarts it, what it may touch.

A newcomer reads `MODULES` and knows the system. The supervisor starts the rows in this order, gated by `needs`, and
stops them in reverse. The broker and every module enforce `publishes` and `may_call`; persistence enforces `reads` and
`writes`. A module that is not in the table does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Spawn(Enum):
    """How a module's process comes into being."""

    FORK = "fork"  # from the zygote: milliseconds, shared memory
    EXEC = "exec"  # a fresh interpreter: for code that must not be forked


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One row: the rights and the restart rules of one process."""

    name: str
    target: str  # "package.module:function", called with the module's Link
    needs: tuple[str, ...] = ()  # started only when these are ready; no restart follows
    restart_with: tuple[str, ...] = ()  # restarted whenever one of these is
    spawn: Spawn = Spawn.FORK
    restart_on_kernel_rev_change: bool = False
    reads: tuple[str, ...] = ()  # collections of the control store
    writes: tuple[str, ...] = ()
    publishes: tuple[str, ...] = ()  # event types
    may_call: tuple[str, ...] = ()  # commands, or "service.*"
    listens: tuple[str, ...] = ()  # "tcp", "udp", "unix:NAME in run_dir": what the supervisor binds for it
    holds_keys: bool = False  # restarted clean by `lock`
    user: str = "root"  # where the host has this user; root with a warning otherwise
    capabilities: tuple[str, ...] = ()
    memory_max: str = "512MiB"
    heartbeat_ms: int = 250
    start_timeout_s: float = 10.0


# mount, own files of any app, end and inspect its processes
_ROOT_CAPABILITIES: Final = (
    "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER", "CAP_KILL", "CAP_SYS_PTRACE",
)  # fmt: skip

# gocryptfs makes files as the user who asks for them
_FILE_SERVER_CAPABILITIES: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_FSETID", "CAP_SETFCAP", "CAP_SYS_RESOURCE")

# The sealed log in etcd: persistence alone writes it and reads it (piccolod/protocol/log.py).
_LOG_COMMANDS: Final = (
    "consensus.head", "consensus.append", "consensus.entries", "consensus.snapshot", "consensus.snapshot_chunk",
    "consensus.put_snapshot", "consensus.keyset", "consensus.put_keyset",
)  # fmt: skip

MODULES: Final[tuple[ModuleSpec, ...]] = (
    ModuleSpec(
        name="broker",
        target="broker.__main__:main",
        # speaks for the supervisor, which has no bus socket
        publishes=("Beat", "ModuleStateChanged", "HealthChanged"),
        user="piccolo-broker",
        memory_max="256MiB",
    ),
    # forked like the others: grpc, which does not live through a fork, is imported after it and beside an etcd alone
    ModuleSpec(
        name="consensus",
        target="services.consensus.__main__:main",
        needs=("broker",),
        publishes=("LeadershipRoleChanged", "ControlRevChanged", "NodeStateChanged", "HealthChanged"),
        may_call=(
            "persistence.revision", "persistence.drain", "persistence.export_log", "persistence.export_chunk",
            "persistence.issue_certificate", "persistence.crypto_status", "persistence.log_end", "persistence.take_entries",
            "persistence.forget_node", "apps.measure_hard_stop",
        ),
        # `state_dir/cluster` with the group of those who read it, and a store that is set aside with its owner
        capabilities=("CAP_CHOWN", "CAP_DAC_READ_SEARCH"),
        heartbeat_ms=100,
    ),
    ModuleSpec(
        name="persistence",
        target="services.persistence.__main__:main",
        needs=("broker",),
        reads=("*",),
        writes=("*",),
        publishes=("LockStateChanged", "ControlStoreCommit", "HealthChanged"),
        may_call=(
            "consensus.campaign", "consensus.closing", "consensus.withdraw", "consensus.grant_unlock", *_LOG_COMMANDS,
        ),
        holds_keys=True,
        user="piccolo-store",
        memory_max="1GiB",
    ),
    ModuleSpec(
        name="volumes",
        target="services.volumes.__main__:main",
        needs=("consensus", "persistence"),
        publishes=("VolumeStateChanged", "HealthChanged"),
        may_call=("persistence.volume_key", "persistence.forget_volume_key"),
        holds_keys=True,
        capabilities=(*_ROOT_CAPABILITIES, "CAP_MKNOD", *_FILE_SERVER_CAPABILITIES),
    ),
    ModuleSpec(
        name="apps",
        target="services.apps.__main__:main",
        needs=("consensus", "persistence"),
        reads=("apps", "ports", "secrets", "settings"),
        writes=("apps", "ports"),
        publishes=("AppStateChanged", "HealthChanged", "Audit"),
        may_call=(
            "consensus.campaign", "consensus.stand", "consensus.closing", "consensus.withdraw", "consensus.leadership",
            "consensus.standings", "consensus.tell_phases",
            "persistence.read", "persistence.list", "persistence.commit", "persistence.revision", "persistence.crypto_status",
            "router.*", "volumes.*", "api.bring_image",
        ),
        capabilities=(*_ROOT_CAPABILITIES, "CAP_NET_ADMIN"),
    ),
    *(
        ModuleSpec(
            name=f"router.{index}",
            target="services.router.__main__:main",
            needs=("broker",),
            publishes=("RouteChanged", "HealthChanged"),
            may_call=("persistence.check_node",),
            listens=("tcp",),
            user="piccolo-router",
        )
        for index in range(2)
    ),
    ModuleSpec(
        name="telemetry",
        target="services.telemetry.__main__:main",
        needs=("broker",),
        publishes=("HealthChanged",),
        may_call=("router.routes", "consensus.leadership", "persistence.revision"),
        user="piccolo-telemetry",
    ),
    ModuleSpec(
        name="api",
        target="services.api.__main__:main",
        needs=("broker",),
        restart_on_kernel_rev_change=True,
        reads=("settings", "tokens", "users"),
        writes=("settings", "tokens", "users", "secrets"),
        publishes=("HealthChanged", "Audit"),
        may_call=("persistence.*", "consensus.*", "apps.*", "router.routes", "router.test", "volumes.list", "telemetry.*"),
        listens=("tcp", "unix:api.sock"),
        user="piccolo-api",
    ),
)  # fmt: skip

# `persistence.volume_key` is for volumes alone, whatever a pattern above says.
RESERVED_COMMANDS: Final[dict[str, frozenset[str]]] = {
    "persistence.volume_key": frozenset({"volumes"}),
    "persistence.forget_volume_key": frozenset({"volumes"}),
    "apps.quiesce": frozenset({"api"}),
    "apps.resume": frozenset({"api"}),
    "apps.save_image": frozenset({"api"}),
    "api.bring_image": frozenset({"apps"}),
    "apps.measure_hard_stop": frozenset({"consensus"}),
    "consensus.campaign": frozenset({"persistence", "apps"}),
    "consensus.closing": frozenset({"persistence", "apps"}),
    "consensus.stand": frozenset({"apps"}),
    "consensus.tell_phases": frozenset({"apps"}),
    "consensus.withdraw": frozenset({"persistence", "apps"}),
    "persistence.drain": frozenset({"consensus"}),
    "persistence.export_log": frozenset({"consensus"}),
    "persistence.take_entries": frozenset({"consensus"}),
    "persistence.export_chunk": frozenset({"consensus"}),
    "persistence.issue_certificate": frozenset({"consensus", "api"}),
    "persistence.redeem": frozenset({"api"}),
    "persistence.forget_node": frozenset({"api", "consensus"}),
    "persistence.check_node": frozenset({"api", "router.0", "router.1"}),
    "persistence.ask_unlock": frozenset({"api"}),
    "persistence.give_key": frozenset({"api"}),
    "persistence.take_key": frozenset({"api"}),
    "consensus.grant_unlock": frozenset({"persistence"}),
    "consensus.keep_certificate": frozenset({"api"}),
    "consensus.recover": frozenset({"api"}),
    **dict.fromkeys(_LOG_COMMANDS, frozenset({"persistence"})),
}

BY_NAME: Final[dict[str, ModuleSpec]] = {spec.name: spec for spec in MODULES}
MODULE_NAMES: Final[frozenset[str]] = frozenset(spec.name.partition(".")[0] for spec in MODULES)
ROUTERS: Final[tuple[str, ...]] = tuple(spec.name for spec in MODULES if spec.name.startswith("router."))


def may_call(caller: str, command: str) -> bool:
    """Whether `caller` (a row's name) has the right to `command` ("service.verb")."""
    spec = BY_NAME.get(caller)
    if spec is None:
        return False
    if command in RESERVED_COMMANDS and caller not in RESERVED_COMMANDS[command]:
        return False
    return command in spec.may_call or f"{command.partition('.')[0]}.*" in spec.may_call


def may_publish(sender: str, event_type: str) -> bool:
    spec = BY_NAME.get(sender)
    return spec is not None and event_type in spec.publishes


def may_read(caller: str, collection: str) -> bool:
    spec = BY_NAME.get(caller)
    return spec is not None and (collection in spec.reads or "*" in spec.reads)


def may_write(caller: str, collection: str) -> bool:
    spec = BY_NAME.get(caller)
    return spec is not None and (collection in spec.writes or "*" in spec.writes)
