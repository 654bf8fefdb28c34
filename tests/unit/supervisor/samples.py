"""Tiny modules for the tests of the supervisor: they speak the pair's language and misbehave on demand.

What a sample does is written in its own folder of the node's state, `<state>/sample/<module>`: one word a line.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from piccolod.link import Link, LinkClosed


class Sample:
    def __init__(self, link: Link) -> None:
        self.link = link
        select.select([link], [], [])
        got = link.receive()
        assert got is not None
        self.start, fds = got
        assert self.start["t"] == "START"
        self.fds = dict(zip(self.start["fds"], fds, strict=True))
        self.name = self.start["module"]
        self.folder = Path(self.start["config"]["node"]["state_dir"]) / "sample"
        self.folder.mkdir(exist_ok=True)
        self.heard: list[dict] = []
        self.answers: dict[int, tuple[dict, list[int]]] = {}
        self.events: list[dict] = []

    def words(self) -> list[str]:
        try:
            return (self.folder / self.name).read_text().split()
        except FileNotFoundError:
            return []

    def note(self, word: str) -> None:
        with open(self.folder / "notes", "a") as file:
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.6f} {self.name} {word}\n")

    def tell(self, **message) -> None:
        self.link.send(message)

    def ask(self, message: dict, fds: tuple[int, ...] = ()) -> tuple[dict, list[int]]:
        number = len(self.answers) + 1
        self.link.send({**message, "id": number}, fds)
        while number not in self.answers:
            select.select([self.link], [], [])
            self.listen_to_supervisor()
        return self.answers[number]

    def listen_to_supervisor(self) -> None:
        try:
            while (got := self.link.receive()) is not None:
                message, fds = got
                if message["t"] == "DONE":
                    self.answers[message["id"]] = (message, fds)
                elif message["t"] == "STOP":
                    self.stop(message)
                else:
                    self.heard.append(message)
                    if message["t"] == "EVENT":
                        with open(self.folder / "events", "a") as file:
                            file.write(json.dumps(message) + "\n")
                    elif message["t"] == "RELOAD" and "reloads" in self.words():
                        self.tell(t="APPLIED", rev=message["rev"])
        except LinkClosed:
            os._exit(70)

    def stop(self, message: dict) -> None:
        self.note("stop" + (":apps" if message.get("apps") else ""))
        self.tell(t="STOPPING")
        if "stubborn" in self.words():
            return
        os._exit(0)

    def serve(self, sock: socket.socket) -> None:
        """Answers each connection with this process's pid."""
        while True:
            try:
                peer, _ = sock.accept()
            except BlockingIOError:
                return
            peer.sendall(str(os.getpid()).encode())
            peer.close()


def main(link: Link) -> None:
    sample = Sample(link)
    words = sample.words()
    listeners: list[socket.socket] = []
    sample.note("start")
    (sample.folder / f"{sample.name}.peers").write_text(json.dumps(sample.start["peers"]))
    if "crash" in words:
        print("the last word of", sample.name, file=sys.stderr)
        os._exit(3)
    if "verbose" in words:
        os.write(2, (b"x" * 99 + b"\n") * 2000)
    if "slow" in words:
        sample.tell(t="EXTEND", seconds=3.0, reason="reads a lot")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            time.sleep(0.05)
            sample.listen_to_supervisor()
    if "never-ready" in words:
        while True:
            select.select([link], [], [])
            sample.listen_to_supervisor()
    for word in words:
        verb, _, argument = word.partition("=")
        if verb == "listen":
            host, _, port = argument.rpartition(":")
            done, fds = sample.ask({"t": "LISTEN", "proto": "tcp", "address": host, "port": int(port)})
            (sample.folder / f"{sample.name}.listen").write_text(str(done["error"]))
            listeners += [socket.socket(fileno=fd) for fd in fds]
        elif verb == "unix":
            done, fds = sample.ask({"t": "LISTEN", "proto": "unix", "address": argument, "port": 0})
            listeners += [socket.socket(fileno=fd) for fd in fds]
        elif verb == "deposit":
            done, _ = sample.ask({"t": "DEPOSIT", "name": "secret"}, (sealed(argument.encode()),))
            (sample.folder / f"{sample.name}.deposit").write_text(str(done["error"]))
        elif verb == "unsealed":
            done, _ = sample.ask({"t": "DEPOSIT", "name": "secret"}, (os.memfd_create("x"),))
            (sample.folder / f"{sample.name}.deposit").write_text(str(done["error"]))
        elif verb == "garbage":
            for junk in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"t": 5}', b'{"t":"BEAT","lag_ms":"x"}', b'{"t":"READY","applied_rev":-1}',
                         b'{"t":"LISTEN","id":[],"proto":[],"address":{},"port":1e400}', b'{"t":"EXTEND","seconds":NaN}',
                         b'{"t":"VERIFIED","rev":"9"}', b'{"t":"RIGHTS","missing":7}', b'{"t":"NOSUCH"}'):  # fmt: skip
                link.sock.send(junk)
        elif verb == "hoard":
            fork_keeper()
    left = {name: os.pread(fd, 100, 0).decode() for name, fd in sample.fds.items() if name.startswith("key:")}
    (sample.folder / f"{sample.name}.fds").write_text(json.dumps({"names": list(sample.fds), "keys": left}))
    if "grandchild" in words and os.fork() == 0:
        time.sleep(1000)
    for listener in listeners:
        listener.setblocking(False)
    sample.note("ready")
    sample.tell(t="READY", applied_rev=0, **({"reloads": True} if "reloads" in words else {}))
    beat_at = 0.0
    lock = "lock" in words
    every_s = float(next((word[5:] for word in words if word.startswith("beat=")), "0.1"))
    chatter = "chatter" in words
    while True:
        now = time.monotonic()
        if now >= beat_at:
            sample.tell(t="BEAT", lag_ms=0.0)
            beat_at = now + every_s
            for order in (sample.folder / f"{sample.name}.orders").glob("*"):
                obey(sample, json.loads(order.read_text()))
                order.unlink()
        if chatter:
            os.write(1, b"chatter " * 100 + b"\n")
        ready, _, _ = select.select([link, *listeners], [], [], 0 if chatter else 0.05)
        for each in ready:
            sample.listen_to_supervisor() if each is link else sample.serve(each)
        if lock:
            sample.ask({"t": "LOCK"})
            lock = False


def obey(sample: Sample, order: dict) -> None:
    if order["t"] == "spin":
        while True:
            pass
    elif order["t"] == "close-pair":
        sample.link.close()
        time.sleep(1000)
    elif order["t"] == "flood":
        for _ in range(order["count"]):
            while not sample.link.send({"t": "STATUS", "level": "OK", "reason": ""}):
                pass
    else:
        sample.tell(**order)


def sealed(data: bytes) -> int:
    fd = os.memfd_create("secret", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    fcntl.fcntl(fd, 1033, 1 | 2 | 4 | 8)
    return fd


def fork_keeper() -> None:
    """A child of its own session that keeps stderr open: it outlives the module."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)


def impatient(link: Link) -> None:
    """Waits only so long for START, as modules do."""
    if not select.select([link], [], [], 0.2)[0]:
        os._exit(71)
    main(link)


def broken(link: Link) -> None:
    raise RuntimeError("broken on purpose")
