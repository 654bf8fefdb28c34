"""What `doctor` looks at: one function a check, each with a finding and, where something is wrong, what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from piccolod.cli.refusal import Refusal
from piccolod.config import Config, load, split_listen
from piccolod.errors import Invalid, PiccoloError
from piccolod.units import format_size, parse_size

if TYPE_CHECKING:
    from piccolod.cli.client import Client

# Older ones lack parts of the API that we use.
_PODMAN: Final = (4, 3)
_LOW_DISK_BYTES: Final = parse_size("1GiB")
_NO_DISK_BYTES: Final = parse_size("100MiB")
# The whole tree takes some 130 MiB; the rest is for one small app.
_LOW_MEMORY_BYTES: Final = parse_size("256MiB")
_PROGRAM_S: Final = 10.0
_PATH: Final = os.defpath + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin"


class Grade(StrEnum):
    OK = "ok"
    NOTE = "note"  # good to know
    WARN = "warn"  # works, with something less
    BAD = "bad"  # must be mended


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    grade: Grade
    finding: str
    hint: str = ""


def examine(client: Callable[[], Client], api_socket: str, file: Path | None) -> list[Finding]:
    """All checks. `api_socket` is where piccolod is asked; its folder is the run_dir that is looked at."""
    found = [_python(), _root()]
    try:
        config = load(file)
        named = f"{file or 'the default'} is good"
        found.append(Finding("configuration", Grade.OK, named))
    except Invalid as error:
        told = "; ".join([error.detail, *(f"{each.path}: {each.message}" for each in error.errors)])
        found.append(Finding("configuration", Grade.BAD, told, error.hint))
        config = Config()
    daemon = _piccolod(client, api_socket)
    found += [daemon, *_programs(), *_devices(), _cgroups(), *_space(config), _memory()]
    return [*found, *_ports(config, running=daemon.grade is not Grade.BAD)]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", Grade.OK if good else Grade.BAD, version, "" if good else "piccolod needs 3.11 or newer")


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("user", Grade.OK, "root")
    return Finding("user", Grade.NOTE, f"uid {os.geteuid()}: some checks see less", "run it as root to see all")


def _piccolod(client: Callable[[], Client], api_socket: str) -> Finding:
    """Reachable, and ready."""
    check = "piccolod"
    asked = client()
    if not asked.target.url:
        with suppress(OSError):
            if not stat.S_ISSOCK(os.stat(api_socket).st_mode):
                return Finding(check, Grade.BAD, f"{api_socket} is not a socket", "remove it, and start piccolod")
    try:
        answer = asked.request("GET", "/health/ready", accept=frozenset({503}))
        document = answer.document()
    except (Refusal, PiccoloError) as failure:
        error = failure.error if isinstance(failure, Refusal) else failure
        return Finding(check, Grade.BAD, error.detail, error.hint)
    if answer.status == 200:
        return Finding(check, Grade.OK, f"runs and is ready ({asked.target})")
    return _not_ready(check, document if isinstance(document, dict) else {})


def _not_ready(check: str, document: dict[str, object]) -> Finding:
    component, reason = str(document.get("component") or ""), str(document.get("reason") or document.get("detail") or "")
    if component == "lock" or document.get("code") == "locked":
        hint = "`piccoloctl setup` sets the first password" if "password" in reason else "`piccoloctl unlock` opens it"
        return Finding(check, Grade.NOTE, f"runs; its store is not open: {reason}", hint)
    name = f"{component}: " if component else ""
    return Finding(check, Grade.WARN, f"runs, but is not ready: {name}{reason}", "`piccoloctl modules list` shows more")


def _programs() -> Iterator[Finding]:
    yield _podman()
    runtimes = [name for name in ("crun", "runc") if _which(name)]
    if runtimes:
        yield Finding("container runtime", Grade.OK, " and ".join(runtimes))
    else:
        yield Finding("container runtime", Grade.BAD, "neither crun nor runc is installed", _install("runc"))
    for program, package, why in (
        ("conmon", "conmon", "it holds containers"),
        ("netavark", "netavark", "apps have networks of their own"),
        ("nft", "nftables", "networks are fenced by it"),
        ("gocryptfs", "gocryptfs", "volumes are encrypted by it"),
        ("fusermount3", "fuse3", "volumes are mounted by it"),
        ("mkfs.ext4", "e2fsprogs", "volumes with a size limit are ext4"),
    ):
        place = _which(program)
        if place:
            yield Finding(program, Grade.OK, place)
        else:
            yield Finding(program, Grade.BAD, f"not installed: {why}", _install(package))


def _which(program: str) -> str | None:
    """podman's own helpers lie beside no PATH."""
    path = f"{os.environ.get('PATH', '')}:{_PATH}:/usr/libexec/podman:/usr/lib/podman:/usr/local/libexec/podman"
    return shutil.which(program, path=path)


def _install(package: str) -> str:
    return f"`make deps`, or install the package {package}"


def _podman() -> Finding:
    place = _which("podman")
    if place is None:
        return Finding("podman", Grade.BAD, "not installed: apps cannot run", _install("podman"))
    try:
        done = subprocess.run([place, "--version"], capture_output=True, text=True, timeout=_PROGRAM_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("podman", Grade.BAD, f"{place} does not run: {error}", "install the package podman again")
    match = re.search(r"(\d+)\.(\d+)[\d.]*", done.stdout)
    if match is None:
        return Finding("podman", Grade.WARN, f"{place} does not tell its version: {done.stdout.strip()!r}")
    if (int(match[1]), int(match[2])) < _PODMAN:
        wanted = ".".join(map(str, _PODMAN))
        return Finding("podman", Grade.BAD, f"{match[0]} is too old", f"piccolod needs {wanted} or newer")
    return Finding("podman", Grade.OK, f"{match[0]} ({place})")


def _devices() -> Iterator[Finding]:
    for device, check, grade, without in (
        ("/dev/fuse", "fuse", Grade.BAD, "encrypted volumes cannot be mounted"),
        ("/dev/loop-control", "loop devices", Grade.WARN, "size limits of volumes cannot be enforced"),
    ):
        module = device.removeprefix("/dev/").partition("-")[0]
        if not Path(device).exists():
            yield Finding(
                check, grade, f"there is no {device}: {without}", f"modprobe {module}; in a container, pass the device"
            )
            continue
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            grade = Grade.NOTE if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0 else grade
            yield Finding(check, grade, f"{device} cannot be opened: {error.strerror}", without)
        else:
            yield Finding(check, Grade.OK, device)


def _cgroups() -> Finding:
    """Which limits of apps this host can enforce."""
    root, wanted = Path("/sys/fs/cgroup"), ("memory", "cpu", "pids")
    unified = root / "cgroup.controllers"
    try:
        if unified.exists():
            kind, there = "v2", set(unified.read_text(encoding="ascii").split())
        else:
            kind, there = "v1", {name for name in wanted if (root / name).is_dir()}
    except OSError as error:
        return Finding("cgroups", Grade.WARN, f"cannot be read: {error.strerror}")
    missing = [name for name in wanted if name not in there]
    if missing:
        hint = "apps that set such a limit are refused; [apps] strict = false runs them without it"
        return Finding("cgroups", Grade.WARN, f"{kind}: no limits of {', '.join(missing)} on this host", hint)
    return Finding("cgroups", Grade.OK, f"{kind}: memory, cpu and pids can be limited")


def _space(config: Config) -> Iterator[Finding]:
    for check, folder in (("disk", config.paths.state), ("run folder", config.paths.run)):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        status = os.statvfs(there)
        free = status.f_bavail * status.f_frsize
        low = _LOW_DISK_BYTES if check == "disk" else _NO_DISK_BYTES
        grade = Grade.OK if free >= low else Grade.WARN if free >= _NO_DISK_BYTES else Grade.BAD
        if status.f_files and status.f_favail < 1000:
            yield Finding(check, Grade.BAD, f"{there} has only {status.f_favail} inodes left", "delete files there")
            continue
        if status.f_flag & os.ST_RDONLY:
            yield Finding(check, Grade.BAD, f"{there} is read-only", "mount it for writing")
            continue
        hint = "" if grade is Grade.OK else "make room: a full disk refuses every change"
        yield Finding(check, grade, f"{format_size(free)} free for {folder}", hint)


def _memory() -> Finding:
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    if match is None:
        return Finding("memory", Grade.NOTE, "the kernel does not tell how much is free")
    free = int(match[1]) * 1024
    low = free < _LOW_MEMORY_BYTES
    return Finding(
        "memory",
        Grade.WARN if low else Grade.OK,
        f"{format_size(free)} available",
        f"below {format_size(_LOW_MEMORY_BYTES)} apps may be ended by the kernel" if low else "",
    )


def _ports(config: Config, *, running: bool) -> Iterator[Finding]:
    """While piccolod runs, it is the one that holds the API's port."""
    for item in () if running else config.api.listen:
        host, port = split_listen(item)
        taken = _taken(host, port)
        hint = f"`ss -ltnp sport = :{port}` names the program; or change api.listen" if taken else ""
        yield Finding("API port", Grade.BAD if taken else Grade.OK, f"{item} is {taken or 'free'}", hint)
    low, high = config.public_ports[0], config.public_ports[-1]
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    reserved = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text(encoding="ascii").strip()
    if first <= high and low <= last and f"{low}-{high}" not in reserved.split(","):
        hint = f"sysctl net.ipv4.ip_local_reserved_ports={','.join(filter(None, [reserved, f'{low}-{high}']))}"
        told = f"{low}-{high}: outgoing connections of this host use ports of that range too ({first}-{last})"
        yield Finding("public ports", Grade.NOTE, told, hint)
    else:
        yield Finding("public ports", Grade.OK, f"{low}-{high}")


def _taken(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return "taken by another program" if error.errno == errno.EADDRINUSE else f"not usable: {error.strerror}"
    return ""
