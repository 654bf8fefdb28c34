"""The first code of a module's process: takes its rights, ties its life to the supervisor's, calls its target.

    python -I entry.py FD SUPERVISOR_PID        for a module that is executed; the zygote calls `enter` after its fork

The supervisor puts one message into the pair before it makes the process:
`ENTRY {target, path, rights}`; what the rights lack comes back as `RIGHTS {missing}`. The module's own words follow.
"""

from __future__ import annotations

import faulthandler
import os
import select
import socket
import sys
import traceback
from typing import Any, Final, NoReturn

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod.link import Link, LinkClosed
from piccolod.supervisor import rights

_ORDER_S: Final = 10.0


def enter(fd: int, supervisor: int) -> NoReturn:
    """Becomes the module at the other end of the pair. Ends with it."""
    code = 1
    try:
        if not rights.die_with(supervisor):
            os._exit(0)
        faulthandler.enable()  # SIGABRT, the supervisor's word for "you hang", leaves the stacks in the log
        link = Link(socket.socket(fileno=fd))
        order = _order(link)
        sys.path[:] = order["path"]
        missing = rights.take(rights.Rights.from_wire(order["rights"]))
        if not rights.die_with(supervisor):  # once more: the change of user has undone it
            os._exit(0)
        if missing:
            link.send({"t": "RIGHTS", "missing": missing})
        resolve(order["target"])(link)
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    _flush()
    # Not sys.exit: threads that still wait for a disk would keep the process.
    os._exit(code)


def resolve(target: str) -> Any:
    """The function that "package.module:function" names."""
    module, _, function = target.partition(":")
    __import__(module)
    return getattr(sys.modules[module], function)


def _order(link: Link) -> dict[str, Any]:
    select.select([link], [], [], _ORDER_S)
    got = link.receive()
    if got is None or got[0]["t"] != "ENTRY":
        raise LinkClosed("the supervisor did not say what to run")
    return got[0]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


if __name__ == "__main__":
    enter(int(sys.argv[1]), int(sys.argv[2]))
