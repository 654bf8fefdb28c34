"""The zygote: imports the modules' code once, then forks modules in milliseconds. Runs as a process of its own.

    python -I zygote.py FD SUPERVISOR_PID

It holds no thread, socket of the bus, loop or secret. Its pair with the supervisor:

    IMPORT {path, targets}               what to import, in order, whenever there is nothing else to do
    FORK {id, target} + pair, log        -> FORKED {id, pid}, or REFUSED {id, reason}: then the supervisor executes it
    PING {id}                            -> PONG {id, warm}
                                            BLANK {pid}: a process that may become a module from now on

Forking is the longest part of a restart, so one blank process waits in advance for what it shall become.

Order of a fork, measured: the intermediate ends, the zygote waits for it (only that proves that the grandchild has been
handed to the supervisor), then the grandchild ties its life to the supervisor's, then its pid is announced, and only then
it may become a module. End of file on a pipe would prove nothing, because the kernel closes files before it hands children
over; a parent-death signal set any earlier would be the end of the intermediate's child, not of the supervisor's.

The supervisor may give up at any instant of this: a pair is given to the zygote once, so that whoever got it and was not
reported in time finds its other end closed, and whoever is frozen is ended by the pid that was announced.
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
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod.link import Link, LinkClosed, Message
from piccolod.supervisor import entry, rights, settle

_WAKE_S: Final = 0.1
_TIE_S: Final = 0.2
_TIE_SPARE_S: Final = 1.0  # nobody waits for it, and the machine may be busy
_CALM_MS: Final = 50  # the module that was just forked has the processor first
_AGAIN_MS: Final = 1000


class Blank(NamedTuple):
    """A child of the supervisor that waits for the descriptors of the module that it becomes. It ends with the zygote."""

    pid: int
    pidfd: int
    link: socket.socket

    def is_tied(self, within_s: float) -> bool:
        """Whether it will end with the supervisor. To be asked once, when it has been handed over."""
        with suppress(OSError):
            self.link.send(b"?", socket.MSG_NOSIGNAL)
            return self._answers(within_s)
        return False

    def take(self, fds: list[int]) -> bool:
        """False: it is dead and has got nothing."""
        with suppress(OSError):
            socket.send_fds(self.link, [b"!"], fds, socket.MSG_NOSIGNAL)
            return True
        return False

    def goes_on(self) -> bool:
        """Whether it makes something of what it took."""
        with suppress(OSError):
            return self._answers(_WAKE_S)
        return False

    def close(self) -> None:
        self.link.close()
        os.close(self.pidfd)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.close()

    def _answers(self, within_s: float) -> bool:
        return bool(select.select([self.link], [], [], within_s)[0] and self.link.recv(1))


class Zygote:
    def __init__(self, link: Link, supervisor: int) -> None:
        self._link = link
        self._supervisor = supervisor
        self._targets: deque[str] = deque()
        self._spare: Blank | None = None
        self._poll = select.poll()
        self._poll.register(link, select.POLLIN)

    def run(self) -> NoReturn:
        gc.disable()
        again_ms: int | None = None
        while True:
            if self._poll.poll(0 if self._targets else again_ms):
                while (got := self._link.receive()) is not None:
                    self._serve(*got)
                again_ms = _CALM_MS if self._spare is None else None
            elif self._targets:
                self._import(self._targets.popleft())
                if not self._targets:
                    self._imported()
                    again_ms = 0
            else:
                # Nobody waits for us now; where it cannot be had it is tried again, not at once.
                with suppress(OSError):
                    self._spare = self._blank(_TIE_SPARE_S)
                again_ms = None if self._spare is not None else _AGAIN_MS

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
        if self._targets:  # all of them first: what is imported after a fork, the child shares with nobody (23 MiB, measured)
            while self._targets:
                self._import(self._targets.popleft())
            self._imported()
        if reason := self._import(target):
            return {"t": "REFUSED", "reason": reason}
        if (tasks := len(os.listdir("/proc/self/task"))) != 1:
            return {"t": "REFUSED", "reason": f"importing has started {tasks - 1} thread(s): it cannot be forked"}
        blank, self._spare = self._spare, None
        if blank is not None and not blank.take(fds):
            blank.kill()
            blank = None
        if blank is None:
            try:
                blank = self._blank(_TIE_S)
            except OSError as error:
                return {"t": "REFUSED", "reason": f"the process could not be forked: {error.strerror}"}
            if blank is None or not blank.take(fds):
                return {"t": "REFUSED", "reason": "the process could not be forked"}
        if not blank.goes_on():  # it may have read from the pair: that is no other process's any more
            blank.kill()
            return {"t": "REFUSED", "reason": "the process that waited for this has frozen"}
        blank.close()
        return {"t": "FORKED", "pid": blank.pid}

    def _blank(self, within_s: float) -> Blank | None:
        """Tied and announced. Raises OSError."""
        settle.settle()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told, tell = os.pipe()
        try:
            zygote = os.getpid()
            intermediate = os.fork()
            if intermediate == 0:
                self._intermediate(zygote, theirs, tell)
            os.waitpid(intermediate, 0)
            os.set_blocking(told, False)
            pid = int(os.read(told, 16))
            blank = Blank(pid, os.pidfd_open(pid), ours)
        except (OSError, ValueError):
            ours.close()
            return None
        finally:
            theirs.close()
            os.close(told)
            os.close(tell)
        if blank.is_tied(within_s) and self._link.send({"t": "BLANK", "pid": pid}):
            return blank
        blank.kill()
        return None

    def _intermediate(self, zygote: int, link: socket.socket, tell: int) -> NoReturn:
        try:
            if not rights.die_with(zygote):  # its child does not inherit this
                os._exit(1)
            pid = os.fork()
            if pid == 0:
                self._become(link.detach())
            os.write(tell, str(pid).encode())
            os._exit(0)
        finally:
            os._exit(1)

    def _become(self, fd: int) -> NoReturn:
        self._link.sock.detach()  # its number is another's soon: nothing of the zygote may close it
        os.setsid()
        # The zygote's end is open here as long as this process waits: without this it would never see its end.
        os.dup2(fd, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        link = socket.socket(fileno=3)
        if not link.recv(1) or not rights.die_with(self._supervisor):
            os._exit(0)
        link.send(b"!")
        _, fds, _, _ = socket.recv_fds(link, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if len(fds) != 2:
            os._exit(0)
        link.send(b"!")
        link.detach()
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        # Out of the way first, so that no number is overwritten before it is copied.
        pair, log = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 16) for each in fds)
        for source, number in ((null, 0), (log, 1), (log, 2), (pair, 3)):
            os.dup2(source, number, inheritable=number < 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        random.seed()
        gc.enable()
        entry.enter(3, self._supervisor)

    def _imported(self) -> None:
        gc.collect()
        settle.fill_holes()
        settle.fill_heap()
        settle.unmap_code()

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
