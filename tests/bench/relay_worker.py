"""One worker of the relay as a process of its own, with a real gate: `relay_worker.py PAGE PUBLIC_PORT=TARGET_PORT ...`."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from pathlib import Path

from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from services.router.limits import Limits
from services.router.relay import Relay
from services.router.route import Listener, Mode, Route, Target
from services.router.table import RouteTable


async def serve(page: Path, pairs: list[tuple[int, int]], token: int) -> None:
    table = RouteTable(Gate(PageReader(page)), lambda _app: None)
    relay = Relay(Limits.of_this_process(), table.judge)
    table.bind(relay)
    for public, target in pairs:
        app = f"bench-{public}"
        listener = Listener(name="web", public_port=public)
        at = Target(listener="web", address="127.0.0.1", port=target)
        table.offer(
            Route(app=app, mode=Mode.LOCAL, epoch=1, resource="app:bench", token=token, listeners=(listener,), targets=(at,))
        )
        sock = socket.create_server(("127.0.0.1", public), backlog=1024)
        port = table.port(app, "web")
        assert port is not None
        relay.open(port, sock)
    relay.attach(asyncio.get_running_loop())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    relay.close()


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # as the zygote does before it forks a worker
    pairs = [(int(public), int(target)) for public, target in (pair.split("=") for pair in sys.argv[2:])]
    asyncio.run(serve(Path(sys.argv[1]), pairs, token=1))
