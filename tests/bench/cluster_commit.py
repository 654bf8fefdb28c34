"""Commits of a cluster and bare guarded transactions of its etcd, in turn; runs inside of the leader's machine.

Usage: cluster_commit.py measure STATE_DIR RUN_DIR | cluster_commit.py fill STATE_DIR RUN_DIR COUNT

A commit is `PUT /settings` on a connection of the API's socket that is kept, to its answer: HTTP, the bus three times (whether
the socket is an admin's, the write, the append), sealing and the transaction. A bare transaction compares a guard three times and
puts what a commit puts, an entry and a head of the same sizes, by the product's own client from this process. `read` is a request of the API that commits nothing.

`alone`: one of each in turn, each once all is quiet again, as it is on three machines that share no processor. `in a row`: one
writer without a pause, which pays for what the commit before still has to do on all three machines.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from piccolod.paths import Paths
from services.consensus import access, members_file
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import Delete, Put, Transaction, created

_PREFIX = "/bench/"
_HEAD_BYTES = 64
_BLOCKS, _ALONE, _IN_A_ROW, _AT_ONCE, _WRITERS = 6, 40, 60, 400, 16
_QUIET_S = 0.06


class Api:
    """One connection that is kept."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def __aenter__(self) -> Api:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        self._writer.write(
            f"{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = await self._reader.readexactly(int(fields["content-length"]))
        if status.split()[1] != "200":
            raise RuntimeError(f"{method} {path}: {status}: {answer[:300]!r}")
        return json.loads(answer)


async def _each(work: Callable[[int], Awaitable[Any]], count: int) -> list[float]:
    seconds = []
    for number in range(count):
        began = time.perf_counter()
        await work(number)
        seconds.append(time.perf_counter() - began)
    return seconds


async def _in_turn(works: dict[str, Callable[[int], Awaitable[Any]]], count: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(count):
        for name, work in works.items():
            await asyncio.sleep(_QUIET_S)
            began = time.perf_counter()
            await work(number)
            seconds[name].append(time.perf_counter() - began)
    return seconds


async def _at_once(works: list[Callable[[int], Awaitable[Any]]], count: int) -> tuple[list[float], float]:
    """Seconds of each, and how many there were in a second."""
    left = iter(range(count))
    seconds: list[float] = []

    async def one(work: Callable[[int], Awaitable[Any]]) -> None:
        for number in left:
            began = time.perf_counter()
            await work(number)
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(one(work) for work in works))
    return seconds, count / (time.perf_counter() - began)


def _write(api: Api) -> Callable[[int], Awaitable[Any]]:
    return lambda number: api.ask("PUT", "/settings", {"title": f"a title of some length, number {number}"})


def _bare(client: Client, guard: int, entry_bytes: int) -> Callable[[int], Awaitable[Any]]:
    compares = (created(f"{_PREFIX}guard", guard),) * 3
    entry, head = b"e" * entry_bytes, Put(f"{_PREFIX}head", b"h" * _HEAD_BYTES)
    return lambda number: client.transact(Transaction(compares, (Put(f"{_PREFIX}log/{number:020}", entry), head)))


async def _measure(paths: Paths) -> dict[str, Any]:
    client = access.managed(paths, members_file.read(paths)).client(rpc_s=5)
    apis = [await Api(paths.api_socket).__aenter__() for _ in range(_WRITERS)]
    try:
        guard = (await client.transact(Transaction((), (Put(f"{_PREFIX}guard", b""),)))).revision
        writes = [_write(api) for api in apis]
        await writes[0](0)
        entry_bytes = int((await apis[0].ask("GET", "/store/log?limit=1"))[-1]["size_bytes"])
        bare = _bare(client, guard, entry_bytes)
        works = {"ours": writes[0], "bare": bare, "read": lambda _: apis[0].ask("GET", "/settings")}
        alone: dict[str, list[float]] = {name: [] for name in works}
        row: dict[str, list[float]] = {name: [] for name in works}
        many: dict[str, list[float]] = {"ours": [], "bare": []}
        per_s: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(_BLOCKS):
            for name, values in (await _in_turn(works, _ALONE)).items():
                alone[name] += values
            for name, work in works.items():
                row[name] += await _each(work, _IN_A_ROW)
            for name, many_works in (("ours", writes), ("bare", [bare] * _WRITERS)):
                seconds, rate = await _at_once(many_works, _AT_ONCE)
                many[name] += seconds
                per_s[name].append(rate)
        p50 = {name: statistics.median(values) * 1e3 for name, values in alone.items()}
        p50_row = {name: statistics.median(values) * 1e3 for name, values in row.items()}
        return {
            "entry_bytes": entry_bytes,
            "p50_ms": p50,
            "p50_in_a_row_ms": p50_row,
            "p50_16_ms": {name: statistics.median(values) * 1e3 for name, values in many.items()},
            "per_s_16": {name: statistics.median(values) for name, values in per_s.items()},
            "ratio_p50": p50["ours"] / p50["bare"],
            "ratio_p50_without_the_api": (p50["ours"] - p50["read"]) / p50["bare"],
            "ratio_p50_in_a_row": p50_row["ours"] / p50_row["bare"],
            "ratio_p50_16": statistics.median(many["ours"]) / statistics.median(many["bare"]),
            "ratio_throughput_16": statistics.median(per_s["ours"]) / statistics.median(per_s["bare"]),
        }
    finally:
        for api in apis:
            await api.__aexit__()
        await client.transact(Transaction((), (Delete(_PREFIX, prefix=True),)))
        await client.close()


async def _fill(paths: Paths, count: int) -> None:
    """So many revs."""
    apis = [await Api(paths.api_socket).__aenter__() for _ in range(_WRITERS)]
    await _at_once([_write(api) for api in apis], count)
    for api in apis:
        await api.__aexit__()


if __name__ == "__main__":
    what, state_dir, run_dir, *more = sys.argv[1:]
    where = Paths(Path(state_dir), Path(run_dir))
    if what == "fill":
        asyncio.run(_fill(where, int(more[0])))
    else:
        print(json.dumps(asyncio.run(_measure(where))))
