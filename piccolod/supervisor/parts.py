"""What the tree works with, built once by the supervisor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from piccolod.supervisor.bus_sockets import BusSockets
from piccolod.supervisor.cgroup import Cgroups
from piccolod.supervisor.ledger import Ledger
from piccolod.supervisor.logs import Book
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.reaper import Reaper
from piccolod.supervisor.requests import Requests
from piccolod.supervisor.sockets import Sockets
from piccolod.supervisor.spawner import Spawner
from piccolod.supervisor.voice import Voice


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """`book(name)` is a module's log; `say(level, event, **facts)` is the supervisor's own."""

    loop: Loop
    reaper: Reaper
    spawner: Spawner
    sockets: Sockets
    bus: BusSockets
    requests: Requests
    ledger: Ledger
    voice: Voice
    cgroups: Cgroups
    book: Callable[[str], Book]
    say: Callable[..., None]
