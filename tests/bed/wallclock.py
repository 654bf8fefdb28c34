"""A wall clock of one's own for a machine, that can be stepped while it runs.

Linux has one CLOCK_REALTIME for all (time namespaces shift the others alone), and a step of it would be one of the whole host.
So it is stepped where programs read it: in the C library, by a library that the machine's /etc/ld.so.preload names. That is
every dynamic program of the machine, the supervisor, its modules and what they are linked with. Not stepped: etcd, which asks
the kernel by itself, what runs in containers, and the times of files.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from tests.bed.machine import Machine

_OFFSET = Path("/run/wall-clock")  # seconds, a double: see wallclock.c
_SOURCE = Path(__file__).with_suffix(".c")


def lay(machine: Machine) -> None:
    """On a machine that has booted and runs nothing yet; until its power is lost."""
    step(machine, 0.0)
    over = machine.folder / "etc"
    over.mkdir(exist_ok=True)
    library = over / "wallclock.so"
    build = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(_SOURCE)]
    subprocess.run(build, check=True, timeout=30)
    (over / "ld.so.preload").write_text(f"{library}\n")
    mount = machine.inside("mount", "-t", "overlay", "-o", f"lowerdir={over}:/etc", "overlay", "/etc")
    subprocess.run(mount, check=True, capture_output=True, timeout=10)


def step(machine: Machine, seconds: float) -> None:
    """How far it is ahead of the host's from now on. In place: every process has the file mapped."""
    file = machine.here(_OFFSET)
    with file.open("r+b" if file.exists() else "wb") as offset:
        offset.write(struct.pack("=d", seconds))


def reads(pid: int) -> bool:
    """Whether a process, by its number here, lives by that clock."""
    return str(_OFFSET) in Path(f"/proc/{pid}/maps").read_text()
