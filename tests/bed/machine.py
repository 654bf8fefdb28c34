"""A machine of the bed: a piccolod in namespaces of its own, with a disk, that can be switched off and on.

Its processes have numbers of their own. `pid()` and `members()` give the numbers that hold here, for os.kill and /proc;
what a machine says about itself (podman, a pid file) goes through `here`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import uuid
from pathlib import Path

from tests.bed.cgroups import Cgroups
from tests.bed.disk import Disk
from tests.bed.network import Network
from tests.node import ROOT, Node

API_PORT = 8080
_RUN_DIR = "/run/piccolod"
_INIT = Path(__file__).with_name("init.sh")
_NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
_DISK_MIB = 2048
# The shell is inside and ends at once: its child becomes one of the machine's first process, which leaves no zombies.
_SPAWN = 'setsid env --default-signal=INT,QUIT "$@" </dev/null >>"$OUTPUT" 2>&1 & echo $!'


class Entered:
    """A program that runs in a machine, as a child of its first process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def __del__(self) -> None:
        os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended. Raises TimeoutExpired."""
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)


class Machine(Node):
    def __init__(self, name: str, folder: Path, network: Network, extra_config: str = "") -> None:
        """Switched off at first."""
        Node.known.add(self)
        self.name, self.address = name, network.address(name)
        self.folder, self.network = folder, network
        self._mount = folder / "disk"
        self._mount.mkdir(parents=True)
        self.state_dir, self.run_dir = self._mount / "state", Path(_RUN_DIR)
        self.state, self.run = folder / "state", folder / "run"  # links into the machine, while it is on
        self.port = API_PORT
        self.config_file, self.output = folder / "piccolod.toml", folder / "output"
        listen = [f"{address}:{API_PORT}" for address in ("127.0.0.1", self.address)]
        self._write_config("35000-45000", f'listen = {json.dumps(listen)}\ntls = "off"', extra_config)
        self.disk = Disk(folder / "disk.img", _DISK_MIB)
        self.cgroups = Cgroups(network.tag, name)
        self.process = None
        self._holder: subprocess.Popen[str] | None = None
        self.init = 0  # pid of the first process

    # --- power

    @property
    def is_on(self) -> bool:
        return self._holder is not None

    def boot(self) -> None:
        """Power, and nothing that runs on it yet. A new boot id, an empty /run, a new network stack, the old disk."""
        assert not self.is_on
        self.cgroups.make()
        self.network.join(self.name)
        boot_id = self.folder / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        unshare = ["unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--propagation", "private"]
        first = ["sh", str(_INIT), self.name, str(boot_id), str(self.disk.image), str(self._mount)]
        self._holder = subprocess.Popen(
            self.cgroups.join(*self.network.inside(self.name, *unshare, *first)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "up\n":
            said = self._holder.stderr.read()
            self.power_off()
            raise RuntimeError(f"{self.name} does not boot: {said}")
        self.init = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0])
        self._link(self.state, self.state_dir)
        self._link(self.run, self.run_dir)

    def power_on(self, within_s: float = 20.0) -> None:
        """Boots, and starts piccolod; every module is ready. 0: does not wait for that."""
        self.boot()
        self.start(wait=False)
        if within_s:
            self.wait_up(within_s)

    def power_off(self) -> None:
        """Power is lost: at once nothing leaves the machine, nothing more reaches its disk, and every process is gone.

        What was not synced is lost with it. Returns when the kernel has ended the last process and released the disk.
        """
        if self._holder is None:
            return
        self.cgroups.freeze()
        self.network.unplug(self.name)
        if self.init:  # 0: it did not get so far
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # somebody killed it
                self.disk.lose_power(self.mount)
                os.kill(self.init, signal.SIGKILL)
        self.cgroups.thaw()
        self._holder.communicate(timeout=20)
        self._holder, self.process, self.init = None, None, 0
        self.network.leave(self.name)
        self.cgroups.remove()
        self.disk.wait_released()

    def remove(self) -> None:
        """Power off; the bed removes the folder."""
        self.power_off()

    # --- inside

    def inside(self, *command: str) -> list[str]:
        return self.cgroups.join("nsenter", f"--target={self.init}", *_NAMESPACES, "--net", f"--wdns={ROOT}", *command)

    def spawn(self, *command: str) -> Entered:
        done = subprocess.run(
            self.inside("sh", "-c", _SPAWN, "spawn", *command),
            env={**os.environ, "OUTPUT": str(self.output)}, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        return Entered(self.members()[int(done.stdout)])

    def here(self, path: Path) -> Path:
        """A path of the machine, as it is reached from here while the machine is on."""
        return Path(f"/proc/{self.init}/root{path}")

    @property
    def mount(self) -> Path:
        """The root of its disk, as it is reached from here while the machine is on."""
        return self.here(self._mount)

    def _link(self, link: Path, path: Path) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(self.here(path))

    # --- processes

    def members(self) -> dict[int, int]:
        """Every process of the machine: its number inside -> its number here. Containers' processes too."""
        level = len(_numbers(self.init)) - 1
        found = {pid: _numbers(pid) for pid in self.cgroups.members()}
        return {numbers[level]: pid for pid, numbers in found.items() if len(numbers) > level}

    def pid(self, module: str) -> int:
        return self.members()[super().pid(module)]

    def named(self, program: str) -> list[int]:
        """The processes, by their numbers here, whose program is `program` (conmon, gocryptfs, etcd)."""
        return [pid for pid in self.members().values() if _program(pid) == program]

    def survivors(self) -> list[int]:
        return sorted(pid for pid in self.members().values() if pid != self.init) if self.is_on else []

    # --- images

    def load_image(self, archive: Path) -> None:
        done = self.podman("load", "--quiet", "--input", str(archive))
        assert "Loaded image" in done, f"{self.name} did not load {archive}: {done}"
        subprocess.run(["sync", "-f", self.mount], check=True, timeout=60)  # as `piccoloctl images load` does


def _numbers(pid: int) -> list[int]:
    """What a process is called here and in each namespace further in (proc(5), NSpid); empty when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return []


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
