"""Starts a broker and modules as real processes, with this process in the supervisor's place."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from piccolod import config
from piccolod.link import Link, LinkClosed, Message
from piccolod.pulse import FD, PulseReader


class Nursery:
    """`start(name, target)` gives a process that was told who is who; `close` ends them all."""

    def __init__(self, folder: Path) -> None:
        self.config = config.parse(f'[node]\nname="n1"\nstate_dir="{folder}/state"\nrun_dir="{folder}/run"\n')
        self.paths = self.config.paths
        self.paths.bus.mkdir(parents=True)
        self.links: dict[str, Link] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.peers: dict[str, tuple[int, str]] = {}
        self.listeners: dict[Path, socket.socket] = {}
        self._lives = 0

    def start(self, name: str, target: str) -> subprocess.Popen[bytes]:
        link, theirs = Link.pair()
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.bus.child", str(theirs.fileno()), target], pass_fds=(theirs.fileno(),)
            )
        self.children[name] = child
        self.admit(name, child.pid, link)
        return child

    def admit(self, name: str, pid: int, link: Link) -> None:
        """Tells everybody who `name` is, then lets it begin: the order that the supervisor keeps."""
        self._lives += 1
        inst = f"{name}-{self._lives}"
        self.peers[name] = (pid, inst)
        for other, other_link in list(self.links.items()):
            if other != name:
                with contextlib.suppress(LinkClosed):
                    other_link.send({"t": "PEERS", "peers": self.peers})
        if name in self.links:
            self.links[name].close()
        self.links[name] = link
        pulse = PulseReader()
        names, fds = [FD, "command"], [pulse.fd, self._listener(self.paths.command_socket(name))]
        if name == "broker":
            for what in ("publish", "subscribe", "snapshot"):
                names.append(what)
                fds.append(self._listener(self.paths.bus / f"{what}.sock"))
        link.send(
            {
                "t": "START", "module": name, "inst": inst, "config": dataclasses.asdict(self.config),
                "peers": self.peers, "fds": names,
            },
            tuple(fds),
        )  # fmt: skip
        pulse.close()

    def _listener(self, path: Path) -> int:
        if path not in self.listeners:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(str(path))
            sock.listen(128)
            self.listeners[path] = sock
        return self.listeners[path].fileno()

    def await_message(self, name: str, kind: str, within_s: float = 10.0) -> Message:
        give_up_at = time.monotonic() + within_s
        while time.monotonic() < give_up_at:
            got = self.links[name].receive()
            if got is None:
                time.sleep(0.002)
            elif got[0]["t"] == kind:
                return got[0]
        raise AssertionError(f"{name} sent no {kind} within {within_s} s")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        child = self.children.pop(name)
        os.kill(child.pid, number)
        child.wait(10)

    def close(self) -> None:
        for child in self.children.values():
            child.kill()
            child.wait(10)
        for link in self.links.values():
            link.close()
        for listener in self.listeners.values():
            listener.close()
