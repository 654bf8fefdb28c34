"""How podman is run for this node: its configuration, and the command line of its API service.

Nothing of the host's own podman is shared: storage, locks, events, networks and volumes lie in folders of this node, so
that two nodes with two configurations run side by side on one machine, and the host's containers are never seen here.
Looking at the host costs under a millisecond, so it is done again at each start and can never be stale.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from piccolod import podman_memory, tmpfs
from piccolod.config import Config
from piccolod.errors import Busy, Failed, Unavailable
from piccolod.supervisor.known_process import KnownProcess, pid_file

_CONTAINER_LOG_BYTES: Final = 10 * 2**20

_EXEC_KEPT_S: Final = 10

# Removing what dead containers left, before the service starts: measured 0.03 s a layer.
_TIDY_S: Final = 15.0

# podman 4.3, cmd/podman; gone with https://github.com/containers/podman/pull/22277
_RUNROOT_CHARACTERS: Final = 50

# linux/capability.h
_CAP_SYS_RESOURCE: Final = 24

_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# How images are reached from here; containers do not get them (`http_proxy = false`).
_PASSED_ON: Final = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip


class Cgroups(StrEnum):
    UNIFIED = "unified"
    HYBRID = "hybrid"  # v1 controllers, and a v2 hierarchy that has controllers too
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class Host:
    """What decides how containers can be run here."""

    cgroups: Cgroups
    may_raise_limits: bool  # CAP_SYS_RESOURCE: podman's defaults ask for more descriptors than a small host grants
    runc: str  # path, empty when it is not installed
    crun: str
    podman: str


@dataclass(frozen=True, slots=True)
class Podman:
    """`argv` + a podman command acts on this node's containers; `env` is its whole environment."""

    argv: tuple[str, ...]
    service_argv: tuple[str, ...]
    env: dict[str, str]


def prepare(config: Config) -> Podman:
    """Writes what podman reads, and says how to call it. Safe to repeat while podman runs.

    Raises Unavailable, naming the program, when podman or an OCI runtime is not installed; Failed when what podman knows of
    containers cannot be kept in memory.
    """
    host = probe()
    if not host.podman:
        raise Unavailable("podman is not installed", hint="run `make deps`, or install the package `podman`")
    paths = config.paths
    text = containers_conf(config, host)
    for folder in (_root(config), paths.podman_run, _networks(config), paths.oci_hooks, image_copies(config)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (link := _runroot(config)) != paths.podman_run and not config.podman.runroot:
        _point(link, paths.podman_run)
    driver = _driver(_root(config))
    _replace(_storage_file(config), storage_conf(config, driver))
    if not config.podman.containers_conf:
        _replace(paths.containers_conf, text)
    argv = _argv(config, host.podman)
    podman = Podman(
        argv=argv,
        service_argv=(*argv, "system", "service", "--time=0", f"unix://{paths.podman_socket}"),
        env=_environment(config),
    )
    _enter_memory(config, podman)
    return podman


def release(config: Config) -> None:
    """Takes away what is mounted for podman, once no container is left there and its service has ended.

    With it nobody could delete the state folder of a node that was stopped. Never waits, and looks only at what is there.
    Raises Busy while somebody prepares podman, OSError.
    """
    with _alone(config, waits=False):
        if _service_runs(config):
            return
        if driver := _begun_with(_root(config)):
            home = _root(config) / driver
            if tmpfs.points_below(home) == [home]:  # podman's own: it binds its storage onto itself
                tmpfs.unmount(home)
        podman_memory.leave(config.paths.podman_run)


def build_contexts(config: Config) -> list[Path]:
    """What the service was sent to build from, and has not removed yet: it leaves those that are no archive (4.3)."""
    return list(image_copies(config).glob("libpod_builder*"))


def forget_builds(contexts: Sequence[Path]) -> None:
    """Removes contexts of builds that have ended."""
    for context in contexts:
        shutil.rmtree(context, ignore_errors=True)


def container_mounts(config: Config) -> list[Path]:
    """What is mounted for containers, in the order in which it came: their roots, their shared memory."""
    ours = {config.paths.podman_run, _root(config) / _driver(_root(config))}
    folders = (config.paths.podman_run, _root(config))
    return [point for folder in folders for point in tmpfs.points_below(folder) if point not in ours]


def probe() -> Host:
    """Reads three small files and looks for three programs."""
    return Host(
        cgroups=_cgroups(Path("/sys/fs/cgroup")),
        may_raise_limits=_has_capability(_CAP_SYS_RESOURCE, Path("/proc/self/status").read_text(encoding="ascii")),
        runc=_program("runc"),
        crun=_program("crun"),
        podman=_program("podman"),
    )


def choose_runtime(configured: str, host: Host) -> str:
    """runc, or crun where it is the only one and works.

    crun refuses hybrid cgroups ("cgroups in hybrid mode not supported"). Raises Unavailable with what to install.
    """
    if configured:
        return configured
    if host.runc:
        return host.runc
    if host.crun and host.cgroups is not Cgroups.HYBRID:
        return host.crun
    missing = "crun cannot run containers with this host's hybrid cgroups" if host.crun else "no OCI runtime is installed"
    raise Unavailable(missing, hint="run `make deps`, or install the package `runc`")


def containers_conf(config: Config, host: Host) -> str:
    """The text of containers.conf."""
    containers = [
        "http_proxy = false",
        'log_driver = "k8s-file"',
        f"log_size_max = {_CONTAINER_LOG_BYTES}",
        # An app has a network of its own and no capabilities: it may listen on 80 there, and ping from there.
        'default_sysctls = ["net.ipv4.ping_group_range=0 0", "net.ipv4.ip_unprivileged_port_start=0"]',
    ]
    if not host.may_raise_limits:
        # Without this podman asks for 1,048,576 descriptors and every start ends in EPERM.
        containers.append("default_ulimits = []")
    engine = [
        f"runtime = {_quoted(choose_runtime(config.podman.runtime, host))}",
        'cgroup_manager = "cgroupfs"',
        'events_logger = "file"',
        # Each exec over the API leaves a conmon for so long; the default of 300 piles up 60 for a probe every 5 s.
        f"exit_command_delay = {_EXEC_KEPT_S}",
        # The default is one shared-memory segment a machine, which a second node's first start would reset.
        'lock_type = "file"',
        f"tmp_dir = {_quoted(_runroot(config) / 'libpod')}",
        f"static_dir = {_quoted(_root(config) / 'libpod')}",
        f"volume_path = {_quoted(_root(config) / 'volumes')}",
        f"image_copy_tmp_dir = {_quoted(image_copies(config))}",
        f"hooks_dir = [{_quoted(config.paths.oci_hooks)}]",
    ]
    network = ['network_backend = "netavark"', f"network_config_dir = {_quoted(_networks(config))}"]
    return "\n".join(["[containers]", *containers, "", "[engine]", *engine, "", "[network]", *network, ""])


def storage_conf(config: Config, driver: str) -> str:
    """The text of storage.conf."""
    lines = [
        "[storage]",
        f"driver = {_quoted(driver)}",
        f"graphroot = {_quoted(_root(config))}",
        f"runroot = {_quoted(_runroot(config))}",
    ]
    return "\n".join([*lines, ""])


def _argv(config: Config, podman: str) -> tuple[str, ...]:
    return (
        podman,
        "--root", str(_root(config)),
        "--runroot", str(_runroot(config)),
        "--network-config-dir", str(_networks(config)),
    )  # fmt: skip


def _environment(config: Config) -> dict[str, str]:
    """Everything podman is given: nothing else of ours may reach conmon, whose environment any container owner sees."""
    return {
        "PATH": _SYSTEM_PATH,
        "HOME": "/root",
        "CONTAINERS_CONF": config.podman.containers_conf or str(config.paths.containers_conf),
        "CONTAINERS_STORAGE_CONF": str(_storage_file(config)),
        "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",  # the host's cgroups are not podman's user's to change
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    }


def _root(config: Config) -> Path:
    return Path(config.podman.root) if config.podman.root else config.paths.podman_root


def _runroot(config: Config) -> Path:
    """podman before 5.1 refuses a longer name: then it is told a short link to the folder."""
    if config.podman.runroot:
        return Path(config.podman.runroot)
    folder = config.paths.podman_run
    if len(str(folder)) <= _RUNROOT_CHARACTERS:
        return folder
    import hashlib  # here: OpenSSL is a twentieth of the supervisor, which seldom needs it

    return Path("/run") / f"piccolo-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"


def _networks(config: Config) -> Path:
    return Path(config.podman.network_config_dir) if config.podman.network_config_dir else config.paths.podman_networks


def image_copies(config: Config) -> Path:
    """Layers on their way in, and what is built: beside the storage, where there is room, instead of the host's /var/tmp."""
    return _root(config) / "incoming"


def _enter_memory(config: Config, podman: Podman) -> None:
    """Raises Failed."""
    if config.podman.runroot and not tmpfs.is_in_memory(_existing(_runroot(config))):
        raise Failed(
            f"podman.runroot {config.podman.runroot} is on a disk, and what podman keeps there tells of containers",
            hint="choose a folder on a tmpfs, or leave it empty",
        )
    with _alone(config):
        # A service that runs entered long ago, or is of a version that did not: then it is for the launch of the next.
        if not _service_runs(config):
            forget_builds(build_contexts(config))
            podman_memory.enter(_place(config), lambda arguments: _run(podman, arguments), _say)


def _place(config: Config) -> podman_memory.Place:
    root = _root(config)
    return podman_memory.Place(config.paths.podman_run, root, _driver(root), ours=not config.podman.root)


@contextmanager
def _alone(config: Config, *, waits: bool = True) -> Iterator[None]:
    """One at a time makes or takes away the memory of a node. Raises Busy instead of waiting where it must not."""
    lock = os.open(config.paths.podman_run.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("podman is being prepared by a launch that does not end") from None
        yield
    finally:
        os.close(lock)


def _service_runs(config: Config) -> bool:
    running = KnownProcess.read(pid_file(config.paths))
    if running is None or (pidfd := running.open()) < 0:
        return False
    os.close(pidfd)
    return True


def _run(podman: Podman, arguments: Sequence[str]) -> None:
    """Raises Failed."""
    import subprocess  # here: the supervisor, which only releases, stays smaller without it

    try:
        done = subprocess.run(
            [*podman.argv, *arguments],
            env=podman.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIDY_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"podman {arguments[0]} did not end within {_TIDY_S:.0f} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise Failed(f"podman {arguments[0]}: {words[-1][:200]}")


def _say(event: str) -> None:
    """In podman's log, which is where the launch speaks."""
    print(f"piccolod {event}", file=sys.stderr, flush=True)


def _existing(folder: Path) -> Path:
    """The folder, or what it will be made in."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _driver(root: Path) -> str:
    """What this storage was begun with; else overlay where the file system can, and vfs, which copies, where it cannot."""
    return _begun_with(root) or ("overlay" if _can_overlay(root) else "vfs")


def _begun_with(root: Path) -> str:
    """Empty where podman has kept nothing yet."""
    return next((driver for driver in ("overlay", "btrfs", "vfs") if (root / driver).is_dir()), "")


def _can_overlay(root: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    probe = Path(tempfile.mkdtemp(prefix=".overlay-", dir=root))
    try:
        for name in ("lower", "upper", "work", "merged"):
            (probe / name).mkdir()
        options = f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work"
        target = bytes(probe / "merged")
        if libc.mount(b"overlay", target, b"overlay", 0, options.encode()):
            return False
        libc.umount2(target, 0)
        return True
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _point(link: Path, folder: Path) -> None:
    """Makes `link` lead to `folder`, at once for everybody who looks."""
    if link.is_symlink() and link.readlink() == folder:
        return
    new = link.with_name(f"{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(folder)
    new.replace(link)


def _storage_file(config: Config) -> Path:
    return config.paths.containers_conf.with_name("storage.conf")


def _cgroups(mount: Path) -> Cgroups:
    if (mount / "cgroup.controllers").exists():
        return Cgroups.UNIFIED
    try:
        controllers = (mount / "unified" / "cgroup.controllers").read_text(encoding="ascii")
    except OSError:
        return Cgroups.LEGACY
    return Cgroups.HYBRID if controllers.strip() else Cgroups.LEGACY


def _has_capability(number: int, status: str) -> bool:
    """`status` is the text of /proc/<pid>/status."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _program(name: str) -> str:
    return shutil.which(name, path=_SYSTEM_PATH) or ""


def _quoted(value: str | Path) -> str:
    """A TOML basic string."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _replace(file: Path, text: str) -> None:
    """Readers see the old text or the new one, never a part; an equal text is not written again."""
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(file)
