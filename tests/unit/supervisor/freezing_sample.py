"""A sample whose import lets a test freeze the zygote in one instant: a process is released and not reported yet.

The test writes `zygote` or `both` into the file `freeze` of its temporary folder; the released pid is then in `released`.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from piccolod.link import Link, Message
from tests.unit.supervisor.samples import main

__all__ = ["main"]

_FOLDER = Path(tempfile.gettempdir())
_send = Link.send


def _freeze(link: Link, message: Message, fds: tuple[int, ...] = ()) -> bool:
    flag = _FOLDER / "freeze"
    if message["t"] == "FORKED" and flag.exists():
        frozen = flag.read_text()
        flag.unlink()
        if frozen == "both":
            os.kill(message["pid"], signal.SIGSTOP)
        (_FOLDER / "released").write_text(str(message["pid"]))
        os.kill(os.getpid(), signal.SIGSTOP)
    return _send(link, message, fds)


Link.send = _freeze  # type: ignore[method-assign]
