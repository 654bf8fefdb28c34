"""gocryptfs: encryption of a folder's files and names, one process a mount.

The key travels through a pipe to its standard input and is nowhere else: not in arguments, environment or files. It runs in
a session of its own, holds the volume's lock, and outlives this module.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from piccolod.errors import Failed, Unavailable
from piccolod.leadership.hardening import NO_CORE_DUMP
from services.volumes import process

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INIT_S: Final = 30.0

# The key is 256 random bits: stretching it would only cost time and memory at each attach.
_SCRYPT_N: Final = "10"

_LOCK_FD: Final = 3

# internal/../mount.go of gocryptfs, unchanged from 1.0 to 2.5
_READY: Final = b"Filesystem mounted and ready."

# The kernel's choice when memory runs out should fall on others: this process carries an app's disk.
_OOM_SCORE: Final = "-800"


def why_not() -> str:
    """Why volumes cannot be encrypted on this host, or empty."""
    if shutil.which("gocryptfs", path=_PATH) is None:
        return "gocryptfs is not installed: run `make deps`, or install the package `gocryptfs`"
    if shutil.which("fusermount3", path=_PATH) is None and shutil.which("fusermount", path=_PATH) is None:
        return "fusermount is not installed: run `make deps`, or install the package `fuse3`"
    if not Path("/dev/fuse").exists():
        return "the kernel offers no /dev/fuse"
    return ""


def init(tree: Path, key: bytes) -> None:
    """Makes an empty ciphertext tree."""
    process.run(_program(), "-init", "-q", "-scryptn", _SCRYPT_N, "--", str(tree), timeout_s=_INIT_S, stdin=_secret(key))


@dataclass(slots=True)
class Spawned:
    """A gocryptfs that waits for its key; without one it ends by itself when this process does."""

    pid: int
    started: int
    _key_fd: int

    def give(self, key: bytes) -> None:
        """It mounts from now on. Before this its pid must be in the journal."""
        try:
            os.write(self._key_fd, _secret(key))  # less than PIPE_BUF: whole or not at all
        except BrokenPipeError:
            pass  # it is dead already; who waits for the mount sees that
        finally:
            self.close()

    def close(self) -> None:
        """Without a key by now it gets none any more, and ends."""
        fd, self._key_fd = self._key_fd, -1
        if fd >= 0:
            os.close(fd)


def spawn(tree: Path, point: Path, lock_fd: int, log: Path) -> Spawned:
    """Starts gocryptfs for a mount of `tree` at `point`. It has no key yet."""
    argv = [
        _program(), "-fg", "-nosyslog", "-allow_other", "-fsname", f"piccolo:{point.name}",
        "--", str(tree), str(point),
    ]  # fmt: skip
    with ExitStack() as opened:

        def kept(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        words = kept(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600))
        ours, write = os.pipe2(os.O_CLOEXEC)
        read = kept(ours)
        try:
            pid = os.posix_spawn(
                argv[0],
                argv,
                {"PATH": _PATH},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read, 0),
                    (os.POSIX_SPAWN_DUP2, words, 1),
                    (os.POSIX_SPAWN_DUP2, words, 2),
                    (os.POSIX_SPAWN_DUP2, lock_fd, _LOCK_FD),  # last: 3 may be one of the others
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
            )
        except BaseException:
            os.close(write)
            raise
    _prepare(pid)
    return Spawned(pid, process.start_time(pid), write)


def _prepare(pid: int) -> None:
    """Before the key comes: no core dump will hold it. Descriptors: one for each file that the app has open."""
    with suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, NO_CORE_DUMP)
    with suppress(OSError, ValueError):
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE)
    _leave_our_cgroup(pid)


def _leave_our_cgroup(pid: int) -> None:
    """Where volumes has a cgroup of its own, whose end and memory limit are not the mounts'."""
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
        folder = Path("/sys/fs/cgroup") / own
        if folder.name == "volumes":
            mounts = folder.with_name("volumes.mounts")
            mounts.mkdir(exist_ok=True)
            (mounts / "cgroup.procs").write_text(str(pid))


def ready(log: Path) -> bool:
    """Whether it says that it serves.

    The mount shows up in the kernel's list earlier, and must not be touched until then: go-fuse itself opens a file in it
    first, and deadlocks with a file that is created in that moment (seen with gocryptfs 2.5.1, go-fuse 2.4.2).
    """
    try:
        return _READY in log.read_bytes()
    except OSError:
        return False


def last_words(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def failure(log: Path, volume: str) -> Failed:
    words = last_words(log) or "it ended without a word"
    hint = "the volume was made under another key" if "incorrect" in words.lower() else f"see {log}"
    return Failed(f"gocryptfs could not mount {volume}: {words}", hint=hint)


def _program() -> str:
    program = shutil.which("gocryptfs", path=_PATH)
    if program is None:
        raise Unavailable(why_not())
    return program


def _secret(key: bytes) -> bytes:
    return key.hex().encode() + b"\n"
