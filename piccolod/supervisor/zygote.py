"""The zygote: imports the modules' code once, then forks modules in milliseconds. Runs as a process of its own.

    python -I zygote.py FD SUPERVISOR_PID

It holds no thread, socket of the bus, loop or secret. Its pair with the supervisor:

    IMPORT {path, targets}               what to import, in order, whenever there is nothing else to do
    FORK {id, target} + pair, log        -> FORKED {id, pid}, or REFUSED {id, reason}: then the supervisor executes it
    PING {id}                            -> PONG {id, warm}

Order of a fork, measured: the intermediate ends, the zygote waits for it (only that proves that the grandchild has been
handed to the supervisor), releases the grandchild, and reports. End of file on a pipe would prove nothing, because the
kernel closes files before it hands children over.
"""

from __future__ import annotations

import fcntl
import gc
import os
import random
import select
import signal
import socket
import sys
import traceback
from collections import deque
from typing import NoReturn

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod.link import Link, LinkClosed, Message
from piccolod.supervisor import entry, rights


class Zygote:
    def __init__(self, link: Link, supervisor: int) -> None:
        self._link = link
        self._supervisor = supervisor
        self._targets: deque[str] = deque()
        self._poll = select.poll()
        self._poll.register(link, select.POLLIN)

    def run(self) -> NoReturn:
        gc.disable()
        while True:
            if self._poll.poll(0 if self._targets else None):
                while (got := self._link.receive()) is not None:
                    self._serve(*got)
            elif self._targets:
                self._import(self._targets.popleft())
                if not self._targets:
                    gc.collect()
                    gc.freeze()

    def _serve(self, message: Message, fds: list[int]) -> None:
        try:
            if message["t"] == "IMPORT":
                sys.path[:] = message["path"]
                self._targets.extend(message["targets"])
            elif message["t"] == "PING":
                self._link.send({"t": "PONG", "id": message["id"], "warm": not self._targets})
            elif message["t"] == "FORK":
                self._link.send({"id": message["id"], **self._fork(message["target"], fds)})
        finally:
            for fd in fds:
                os.close(fd)

    def _fork(self, target: str, fds: list[int]) -> Message:
        if reason := self._import(target):
            return {"t": "REFUSED", "reason": reason}
        if (tasks := len(os.listdir("/proc/self/task"))) != 1:
            return {"t": "REFUSED", "reason": f"importing has started {tasks - 1} thread(s): it cannot be forked"}
        pair, log = fds
        gc.freeze()  # what was imported since the last fork is never written to by a collector either
        released, release = os.pipe()
        told, tell = os.pipe()
        try:
            intermediate = os.fork()
            if intermediate == 0:
                self._intermediate(pair, log, released, release, tell)
            os.waitpid(intermediate, 0)
            pid = int(os.read(told, 16) or 0) if select.select([told], [], [], 0)[0] else 0
            if pid == 0:
                return {"t": "REFUSED", "reason": "the process could not be forked"}
            os.write(release, b"!")
            return {"t": "FORKED", "pid": pid}
        except OSError as error:
            return {"t": "REFUSED", "reason": f"the process could not be forked: {error.strerror}"}
        finally:
            for fd in (released, release, told, tell):
                os.close(fd)

    def _intermediate(self, pair: int, log: int, released: int, release: int, tell: int) -> NoReturn:
        try:
            pid = os.fork()
            if pid:
                os.write(tell, str(pid).encode())
                os._exit(0)
            os.close(release)
            if os.read(released, 1) == b"!":
                self._become(pair, log)
        finally:
            os._exit(1)

    def _become(self, pair: int, log: int) -> NoReturn:
        self._link.sock.detach()  # its number is another's soon: nothing of the zygote may close it
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        pair = fcntl.fcntl(pair, fcntl.F_DUPFD_CLOEXEC, 16)  # out of the way of what is put in place now
        for source, fd in ((null, 0), (log, 1), (log, 2), (pair, 3)):
            os.dup2(source, fd, inheritable=fd < 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        random.seed()
        gc.enable()
        entry.enter(3, self._supervisor)

    def _import(self, target: str) -> str:
        """Why it cannot be imported; empty when it is."""
        try:
            entry.resolve(target)
        except BaseException as error:
            traceback.print_exc()
            return f"{target} cannot be imported: {type(error).__name__}: {error}"
        return ""


def main(fd: int, supervisor: int) -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    rights.no_core_dumps()
    rights.load_name_service()
    if rights.die_with(supervisor):
        try:
            Zygote(Link(socket.socket(fileno=fd)), supervisor).run()
        except LinkClosed:
            pass
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
