"""One subscriber of the bus bench: counts and times what it gets until a line comes on stdin, then prints JSON.

bus SUBSCRIBE SNAPSHOT   reads Audit events by the real Subscriber
nats PORT                reads the subject `bench` by a raw socket
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import msgspec


class Tally:
    def __init__(self) -> None:
        self.latencies_us: list[float] = []
        self.count = 0
        self.first_at = self.last_at = 0.0

    def add(self, count: int) -> None:
        now = time.monotonic()
        self.first_at = self.first_at or now
        self.last_at = now
        self.count += count

    def print(self) -> None:
        seconds = max(self.last_at - self.first_at, 0.001)
        p50 = statistics.median(self.latencies_us) if self.latencies_us else 0.0
        print(json.dumps({"count": self.count, "per_s": self.count / seconds, "p50_us": p50}), flush=True)


async def read_bus(subscribe: str, snapshot: str) -> None:
    import zmq

    from piccolod.bus.subscriber import Subscriber
    from piccolod.protocol.events import Audit

    tally = Tally()

    def got(event: Audit) -> None:
        tally.add(1)
        tally.latencies_us.append((time.monotonic_ns() - int(event.request_id)) / 1000)

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    subscriber = Subscriber(context, Path(subscribe), Path(snapshot))
    subscriber.on(Audit, got)
    await asyncio.sleep(0.3)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.sleep(0.3)
    tally.print()
    subscriber.close()
    context.destroy(0)


async def read_nats(port: int) -> None:
    """Each message is found, cut out and decoded, as on our side; only the protocol's text is simpler than a client's."""
    from piccolod.protocol.events import Audit

    decode = msgspec.msgpack.Decoder(Audit).decode
    tally = Tally()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false}\r\nSUB bench 1\r\n')
    await writer.drain()
    await asyncio.sleep(0.3)
    print("ready", flush=True)
    end = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    buffer = b""
    while not end.done():
        try:
            buffer += await asyncio.wait_for(reader.read(65536), 0.2)
        except TimeoutError:
            continue
        at = 0
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            line = buffer[at:line_end]
            if not line.startswith(b"MSG"):
                at = line_end + 2
                continue
            size = int(line.rpartition(b" ")[2])
            if len(buffer) < line_end + 4 + size:
                break
            event = decode(buffer[line_end + 2 : line_end + 2 + size])
            at = line_end + 4 + size
            tally.add(1)
            tally.latencies_us.append((time.monotonic_ns() - int(event.request_id)) / 1000)
        buffer = buffer[at:]
    await end
    tally.print()
    writer.close()


if __name__ == "__main__":
    if sys.argv[1] == "bus":
        asyncio.run(read_bus(sys.argv[2], sys.argv[3]))
    else:
        asyncio.run(read_nats(int(sys.argv[2])))
