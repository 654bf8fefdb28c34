"""The bus against its figures: events to 8 subscribers, commands between two modules, NATS beside them.

    python -m tests.bench.bus

Every process is real: the broker, one publisher that is known to it, eight subscribers. NATS runs the same pattern with a
raw publisher and raw-socket subscribers in the same run, for the ratio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from piccolod.bus.envelope import encode
from piccolod.link import Link
from piccolod.module import Module, await_start
from piccolod.protocol.events import Audit
from piccolod.protocol.telemetry import GetMetrics
from tests.unit.bus.nursery import Nursery

_SUBSCRIBERS = 8
_RATE = 1000
_SECONDS = 3.0


def _event(number: int) -> Audit:
    """About 100 bytes of body; `request_id` carries when it was sent."""
    return Audit(
        actor="a" * 16, source="s" * 12, action=str(number), status=200, code="", request_id=str(time.monotonic_ns())
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _module(nursery: Nursery, name: str) -> AsyncIterator[Module]:
    link, theirs = Link.pair()
    nursery.admit(name, os.getpid(), link)
    ours = Link(theirs)
    start, fds = await_start(ours)
    async with asyncio.TaskGroup() as tasks:
        module = Module(ours, start, fds, tasks)
        module.open()
        try:
            yield module
        finally:
            module.close()
            ours.close()
            link.close()
            nursery.links.pop(name)


def _start_readers(arguments: list[str]) -> list[subprocess.Popen[str]]:
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bus_reader", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(_SUBSCRIBERS)
    ]  # fmt: skip
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    return readers


def _end_readers(readers: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    results = []
    for reader in readers:
        out, _ = reader.communicate("end\n", timeout=20)
        results.append(json.loads(out.splitlines()[-1]))
    return results


async def _latency(module: Module, arguments: list[str]) -> float:
    readers = _start_readers(arguments)
    began = time.monotonic()
    for number in range(int(_RATE * _SECONDS)):
        module.publish(_event(number))
        await asyncio.sleep(max(0.0, began + (number + 1) / _RATE - time.monotonic()))
    results = _end_readers(readers)
    return statistics.median(result["p50_us"] for result in results)


async def _throughput(module: Module, arguments: list[str]) -> float:
    """Events per second of the slowest of the readers, while one publisher sends as fast as the loop lets it."""
    readers = _start_readers(arguments)
    end_at = time.monotonic() + _SECONDS
    number = 0
    while time.monotonic() < end_at:
        for _ in range(50):
            module.publish(_event(number))
            number += 1
        await asyncio.sleep(0)
    return min(result["per_s"] for result in _end_readers(readers))


async def _commands(module: Module) -> dict[str, float]:
    await module.call(GetMetrics())
    took = []
    for _ in range(2000):
        began = time.perf_counter()
        await module.call(GetMetrics())
        took.append(time.perf_counter() - began)
    count = 20_000

    async def worker() -> None:
        for _ in range(count // 32):
            await module.call(GetMetrics())

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(32)))
    return {"round_trip_p50_us": statistics.median(took) * 1e6, "in_flight_32_per_s": count / (time.perf_counter() - began)}


@contextlib.contextmanager
def _nats() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(["nats-server", "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        give_up_at = time.monotonic() + 5
        while time.monotonic() < give_up_at:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait(5)


def _nats_throughput(port: int) -> float:
    readers = _start_readers(["nats", str(port)])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.recv(4096)
        sock.sendall(b'CONNECT {"verbose":false}\r\n')
        end_at = time.monotonic() + _SECONDS
        while time.monotonic() < end_at:
            sock.sendall(b"".join(_nats_publish(encode(_event(number))) for number in range(50)))
    return min(result["per_s"] for result in _end_readers(readers))


def _nats_publish(body: bytes) -> bytes:
    return b"PUB bench %d\r\n%b\r\n" % (len(body), body)


async def _ours(folder: Path, rounds: int) -> dict[str, Any]:
    nursery = Nursery(folder)
    try:
        nursery.start("broker", "broker.__main__:main")
        nursery.await_message("broker", "READY")
        nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
        arguments = ["bus", str(nursery.paths.bus_subscribe), str(nursery.paths.bus_snapshot)]
        async with _module(nursery, "api") as module:
            result: dict[str, Any] = await _commands(module)
            result["latency_p50_us"] = statistics.median([await _latency(module, arguments) for _ in range(rounds)])
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(await _throughput(module, arguments))
                if shutil.which("nats-server"):
                    with _nats() as port:
                        theirs.append(await asyncio.to_thread(_nats_throughput, port))
            result["throughput_per_s"] = statistics.median(ours)
            if theirs:
                result["nats_per_s"] = statistics.median(theirs)
                result["ratio_to_nats"] = result["throughput_per_s"] / result["nats_per_s"]
            return result
    finally:
        nursery.close()


def measure(rounds: int = 3) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        return asyncio.run(_ours(Path(folder), rounds))


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
