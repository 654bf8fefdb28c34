"""`piccolod --after-crash`: what the service manager runs once the supervisor has ended, for whatever reason.

A node alone leads for ever and nobody waits for its terms: its containers run on and the next start adopts them. Of a member
of a cluster the others need not wait for the deadline: the page is shut for good, what the leash table lists is killed and
proven dead, and only then the terms are released (leadership.md, rule 7). It is left as it is where nobody could take over:
while no deadline runs, and in a cluster of two whose etcd does not survive this node's. So it is after a planned end with
containers that are led and guarded: consensus has given the kernel away by then, and what runs is adopted by a start that comes
before its deadline, as after a restart. In both cases the leashes kill at D_hard.

kill -9 in the middle is safe: a page that is shut resumes nothing, whatever is left alive is killed by the leashes too, and the
next start, or this once more, ends the session.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from piccolod import clock
from piccolod.errors import Busy, PiccoloError
from piccolod.leadership import leash_table
from piccolod.leadership.leash_probe import LEASHES
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import Page, PageReader, PageWriter
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.paths import Paths

# (paths, resources of which something may live still) -> what became of the terms, as a sentence. Raises PiccoloError.
Release = Callable[[Paths, frozenset[str]], str]
# Whether the etcd of the others has a quorum without this node's.
LeadsOn = Callable[[Paths], bool]

# No module outlives its supervisor for longer than 0.5 s (architecture.md, Orphans).
_WRITER_S: Final = 1.0
# A container dies in milliseconds, or hangs in the kernel.
_PROOF_S: Final = 2.0
_LOOK_S: Final = 0.005
_ANSWER_S: Final = 0.5
# Members of etcd that are three bear the loss of one. One that an owner keeps outlives this node anyway.
_FEWEST_WITH_MEMBERS: Final = 3
_FEWEST_WITH_AN_OWNER: Final = 2
# systemd.exec(5), of ExecStopPost=: exit code 0, and neither a signal nor the watchdog or a time limit of the manager.
_IN_ORDER: Final = {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}


def is_planned(environment: Mapping[str, str]) -> bool:
    """Whether the service manager says that piccolod ended in order, which it does when it is stopped or restarted."""
    return all(environment.get(name) == value for name, value in _IN_ORDER.items())


def after_crash(paths: Paths, release: Release, leads_on: LeadsOn, *, planned: bool = False) -> str:
    """What was found and done, as a sentence. Raises Busy beside a live supervisor: it has adopted everything already.

    `planned`: piccolod ended in order; a page or a leash that does not bear this out outweighs it. `leads_on` is asked in a
    cluster of two alone, before anything is killed, for a second or two.
    No supervisor can start before this ends: it holds the lock of the run directory meanwhile.
    """
    try:
        lock = os.open(paths.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return "nothing to do: piccolod has not run since this machine started"
    try:
        _hold(lock, paths)
        if not (paths.cluster / "mode").exists():
            return f"nothing to do: this node is alone; {_run_on(paths)}"
        return _of_a_member(paths, release, leads_on, planned)
    finally:
        os.close(lock)


def _hold(lock: int, paths: Paths) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            f"a supervisor runs on {paths.run}", hint="--after-crash is for the service manager, after a crash"
        ) from None


def _of_a_member(paths: Paths, release: Release, leads_on: LeadsOn, planned: bool) -> str:
    reader = PageReader(paths.page)
    page = reader.read()
    reader.close()
    if page is None or page.boot_id != clock.boot_id():
        return "nothing to do: no deadline page of this boot"
    if page.hard_at == clock.FOREVER:
        return f"left as it is: no other node may take over from this one; {_run_on(paths)}"
    if planned and _may_be_adopted(paths, page):
        return f"left as it is after a planned end: for {_left_s(page):.1f} s {_run_on(paths)}"
    if not _others_lead_on(paths, leads_on):
        return f"left as it is: without this node the cluster has no quorum; for {_left_s(page):.1f} s {_run_on(paths)}"
    with _shut(paths, page) as is_shut:
        if not is_shut:
            return "released nothing: the former consensus lives still, and may write the deadline page"
        unproven = _stop(paths)
        try:
            return release(paths, unproven)
        except PiccoloError as error:
            return f"released nothing, others lead once this node's span has passed: {error.detail}"


def _run_on(paths: Paths) -> str:
    return f"{len(_led(paths))} led container(s) run on, a start adopts them"


def _led(paths: Paths) -> list[Entry]:
    return leash_table.alive(leash_table.read(paths.leash).values())


def _left_s(page: Page) -> float:
    return max(0.0, page.hard_at - clock.now())


def _may_be_adopted(paths: Paths, page: Page) -> bool:
    """Whether containers run, each in its term of the page's session, with both leashes that end them at its deadline.

    Where the kernel could not be given away, others wait for it: it is released with all the rest.
    """
    led = _led(paths)
    if not led or RESOURCE_KERNEL in page.terms or not page.sid or not _left_s(page):
        return False
    terms = {name: (term.token, term.epoch) for name, term in page.terms.items()}
    if any(terms.get(each.resource) != (each.token, each.epoch) for each in led):
        return False
    return all(_answers(paths, index) for index in range(LEASHES))


def _answers(paths: Paths, leash: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(_ANSWER_S)
        try:
            asking.connect(os.fspath(paths.leash_socket(leash)))
            asking.send(b"PING")
            return asking.recv(64).startswith(b"PONG")
        except OSError:
            return False


def _members(paths: Paths) -> int:
    try:
        return len(json.loads((paths.cluster / "members.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return 0


def _others_lead_on(paths: Paths, leads_on: LeadsOn) -> bool:
    """Whether somebody else can take over. Where the members keep etcd, two may have the quorum without this one."""
    if _is_external(paths):
        return _members(paths) >= _FEWEST_WITH_AN_OWNER
    return _members(paths) >= _FEWEST_WITH_MEMBERS or leads_on(paths)


def _is_external(paths: Paths) -> bool:
    try:
        return bool(json.loads((paths.cluster / "mode").read_bytes()).get("etcd") == "external")
    except (OSError, ValueError):
        return False


# --- shut


@contextmanager
def _shut(paths: Paths, page: Page) -> Iterator[bool]:
    """A page without a session: nobody resumes what it showed, and nobody else writes it meanwhile. False: it stays open."""
    writer = _only_writer(paths)
    if writer is None:
        yield False
        return
    try:
        writer.write(Page(0, page.gen, 0, 0, page.boot_id, 0.0, 0.0, {}))
        yield True
    finally:
        writer.close()


def _only_writer(paths: Paths) -> PageWriter | None:
    """Once the former consensus has died, which proves that it acts no more."""
    give_up_at = clock.now() + _WRITER_S
    while True:
        try:
            return PageWriter(paths.page)
        except BlockingIOError:
            if clock.now() >= give_up_at:
                return None
            time.sleep(_LOOK_S)


# --- stop, and prove it


def _stop(paths: Paths) -> frozenset[str]:
    """Kills all that is led here; the resources of which something may live still.

    The page is shut: what a dying process starts after a look finds that. So an empty look is the proof.
    """
    give_up_at = clock.now() + _PROOF_S
    while True:
        unproven = frozenset((*_alive(paths), *_kernel(paths)))
        if not unproven or clock.now() >= give_up_at:
            return unproven
        time.sleep(_LOOK_S)


def _alive(paths: Paths) -> Iterable[str]:
    for entry in _led(paths):
        leash_table.kill(entry)
        yield entry.resource


def _kernel(paths: Paths) -> Iterable[str]:
    """A socket that refuses has no process any more: its writes went through consensus, and die with the session."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        if asking.connect_ex(os.fspath(paths.command_socket("persistence"))) not in (errno.ECONNREFUSED, errno.ENOENT):
            yield RESOURCE_KERNEL
