"""One worker of a member's router as a process of its own: `tunnel_worker.py SETTINGS`, which is JSON.

`page`, `folder` (its certificate), `peer_port` (0: it takes no other node's clients), and `routes`: `public` and `target`, a port of
this machine, or `leader` and `peer`, a node's name and its peer port.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.pki.node_files import NodeFiles
from services.router.limits import Limits
from services.router.relay import Relay
from services.router.route import Leader, Listener, Mode, Route, Target
from services.router.table import RouteTable
from services.router.tunnel.security import Security

CLUSTER = "c0ffee00c0ffee00c0ffee00c0ffee00"


def route_of(item: dict[str, Any]) -> Route:
    """Routes of both nodes carry the same name: that of the target's port."""
    listeners = (Listener(name="web", public_port=item["public"]),)
    app = f"bench-{item['app']}"
    if "target" in item:
        at = Target(listener="web", address="127.0.0.1", port=item["target"])
        return Route(app=app, mode=Mode.LOCAL, epoch=1, resource="app:bench", token=1, listeners=listeners, targets=(at,))
    leader = Leader(node=item["leader"], address="127.0.0.1", port=item["peer"])
    return Route(app=app, mode=Mode.TUNNEL, epoch=1, listeners=listeners, leader=leader)


async def serve(settings: dict[str, Any]) -> None:
    table = RouteTable(Gate(PageReader(Path(settings["page"]))), lambda _app: None)
    relay = Relay(Limits.of_this_process(), table.judge, table.port)
    table.bind(relay)
    relay.attach(asyncio.get_running_loop())
    relay.vet_by(lambda _peer, then: then(""))
    relay.secure(Security(NodeFiles(Path(settings["folder"])), CLUSTER))
    if settings["peer_port"]:
        relay.open_to_peers(socket.create_server(("127.0.0.1", settings["peer_port"]), backlog=1024))
    for item in settings["routes"]:
        route = route_of(item)
        table.offer(route)
        port = table.port(route.app, "web")
        assert port is not None
        relay.open(port, socket.create_server(("127.0.0.1", item["public"]), backlog=1024))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    relay.close()


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # as the zygote does before it forks a worker
    asyncio.run(serve(json.loads(sys.argv[1])))
