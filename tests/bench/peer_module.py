"""What runit and supervisord restart in the bench: imports what a module of ours imports, opens a loop and a context, is ready.

`python -m tests.bench.peer_module SOCKET` sends its pid to the datagram socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import zmq

from services.telemetry import __main__  # noqa: F401  the imports of a real module


async def main() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(str(os.getpid()).encode(), sys.argv[1])
    await asyncio.sleep(3600)
    context.destroy(0)


if __name__ == "__main__":
    asyncio.run(main())
