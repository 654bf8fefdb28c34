"""What a bed leaves on this host when it dies, found by its names and taken away. A bed that lives is never touched."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.bed import cgroups
from tests.bed.disk import Disk
from tests.bed.network import run
from tests.node import until

PREFIX = cgroups.PREFIX
_ROOT = Path("/tmp")
_NETNS = Path("/run/netns")


class Claim:
    """The folder and the tag of one bed, held until `release` or until the process dies."""

    def __init__(self) -> None:
        self.tag = secrets.token_hex(3)[:5]
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{self.tag}-", dir=_ROOT))
        self._lock = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.folder / "tag").write_text(self.tag)

    def release(self) -> None:
        shutil.rmtree(self.folder)
        os.close(self._lock)


def clean() -> list[str]:
    """Removes every trace of every bed that died. What was removed, a line for each bed."""
    done = []
    for folder in sorted(_ROOT.glob(f"{PREFIX}*")):
        with _dead(folder) as is_dead:
            if is_dead:
                tag = (folder / "tag").read_text() if (folder / "tag").exists() else ""
                if tag:
                    _clean_tag(tag)
                _release_disks(folder)
                shutil.rmtree(folder)
                done.append(f"{folder} ({tag or 'no tag'})")
    return done


def traces(tag: str) -> list[str]:
    """What is there of the bed `tag`: processes, cgroups, links, namespaces, rules, folders, disks."""
    found = [f"folder {folder}" for folder in _ROOT.glob(f"{PREFIX}*") if _tag_of(folder) == tag]
    for mount, _ in cgroups.hierarchies():
        for procs in (mount / f"{PREFIX}{tag}").rglob("cgroup.procs"):
            found.append(f"cgroup {procs.parent} of {procs.read_text().split()}")
    found += [f"link {name}" for name in _links(tag)]
    found += [f"namespace {path.name}" for path in _namespaces(tag)]
    found += [f"disk {line}" for line in run("losetup", "--all").splitlines() if f"{PREFIX}{tag}-" in line]
    found += [f"rules {line}" for line in run("nft", "list", "tables", check=False).splitlines() if f"pb{tag}" in line]
    return found


def _clean_tag(tag: str) -> None:
    for mount, _ in cgroups.hierarchies():
        bed = mount / f"{PREFIX}{tag}"
        for frozen in bed.rglob("cgroup.freeze"):
            with suppress(OSError):
                frozen.write_text("0")
        until(partial(_killed, bed), f"no process in {bed}", 20)
        cgroups.remove_tree(bed)
    for path in _namespaces(tag):
        run("ip", "netns", "delete", path.name, check=False)
    for name in _links(tag):
        run("ip", "link", "delete", name, check=False)
    run("nft", "delete", "table", "bridge", f"pb{tag}", check=False)


def _killed(bed: Path) -> bool:
    pids = [int(line) for file in bed.rglob("cgroup.procs") for line in _text(file).split()]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids


def _release_disks(folder: Path) -> None:
    """A disk that was frozen when its machine died holds its loop device for ever: thawing needs a mount of it."""
    for device, image in re.findall(rf"^(/dev/loop\d+): .*\(({re.escape(str(folder))}/[^)]*)", run("losetup", "--all"), re.M):
        point = Path(image).with_name("thaw")
        point.mkdir(exist_ok=True)
        with suppress(RuntimeError):
            run("mount", device, str(point))
            Disk.thaw(point)
            run("umount", str(point))
        run("losetup", "--detach", device, check=False)


@contextmanager
def _dead(folder: Path) -> Iterator[bool]:
    """Whether nobody holds it; meanwhile we do."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)


def _tag_of(folder: Path) -> str:
    return _text(folder / "tag")


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text()
    return ""


def _links(tag: str) -> list[str]:
    """The bridge last: its ports go before it."""
    names = [name for _, name in re.findall(r"^(\d+): ([^:@]+)", run("ip", "-oneline", "link"), re.M)]
    return sorted((name for name in names if name.startswith(f"pb{tag}")), key=len, reverse=True)


def _namespaces(tag: str) -> list[Path]:
    return list(_NETNS.glob(f"pb{tag}-*"))
