"""Our etcd client on three members, etcd3's own client beside it in the same run.

    python -m tests.bench.etcd

Values of 256 B; the local endpoint leads, so that no hop is counted. What one machine's three members cost each other is in
the figures of both: compare them, and take neither for those of three machines.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from services.consensus.etcd import lease
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import Put, Range, Transaction, created
from services.consensus.etcd.watch import Revision, Watch
from tests.etcd import Cluster

_VALUE = b"x" * 256
_ALONE, _AT_ONCE, _IN_FLIGHT = 600, 2400, 16


def _figures(seconds: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(seconds) * 1e3, 2),
        "p99_ms": round(statistics.quantiles(seconds, n=100)[98] * 1e3, 2),
    }


async def _alone(work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    seconds = []
    cpu_s = time.process_time()
    for _ in range(_ALONE):
        began = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - began)
    return {**_figures(seconds), "cpu_us": round((time.process_time() - cpu_s) / _ALONE * 1e6)}


async def _at_once(work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    left = iter(range(_AT_ONCE))

    async def one() -> None:
        for _ in left:
            await work()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(_IN_FLIGHT)))
    return {"per_s": round(_AT_ONCE / (time.perf_counter() - began))}


async def _put_to_watch(client: Client) -> dict[str, float]:
    """From before the put to the event, through the same event loop."""
    _, revision = await client.list("/bench/watched", 5)
    news = Watch(client, "/bench/watched", revision, 5).news()
    seconds = []
    for _ in range(300):
        began = time.perf_counter()
        _, seen = await asyncio.gather(client.transact(Transaction((), (Put("/bench/watched", _VALUE),))), anext(news))
        assert isinstance(seen, Revision)
        seconds.append(time.perf_counter() - began)
    await news.aclose()
    return _figures(seconds)


async def _ours(endpoints: list[str]) -> dict[str, Any]:
    client = Client(endpoints, None, rpc_s=5)
    guard = (await client.transact(Transaction((), (Put("/bench/guard", b""),)))).revision
    kept = lease.KeepAlive(client, (await lease.grant(client, 30)).id)
    put, guarded = Put("/bench/key", _VALUE), created("/bench/guard", guard)
    try:
        return {
            "txn": await _alone(lambda: client.transact(Transaction((guarded,), (put,)))),
            "txn_16": await _at_once(lambda: client.transact(Transaction((guarded,), (put,)))),
            "put": await _alone(lambda: client.transact(Transaction((), (put,)))),
            "put_16": await _at_once(lambda: client.transact(Transaction((), (put,)))),
            "get": await _alone(lambda: client.find(Range("/bench/key"), 5)),
            "keepalive": await _alone(lambda: kept.renew(5)),
            "put_to_watch": await _put_to_watch(client),
        }
    finally:
        kept.close()
        await client.close()


def measure() -> dict[str, Any]:
    with Cluster(3) as cluster:
        leader = cluster.leader().endpoint
        ours = asyncio.run(_ours([leader, *(each for each in cluster.endpoints if each != leader)]))
        theirs = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.etcd_peer", leader, str(_ALONE), str(_AT_ONCE), str(_IN_FLIGHT)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return {"ours": ours, "etcd3": json.loads(theirs.stdout), "load": os.getloadavg()[0]}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
