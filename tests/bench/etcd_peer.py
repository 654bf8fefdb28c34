"""The part of `etcd.py` that is etcd3's own client, alone in its process: `etcd_peer.py ENDPOINT ALONE AT_ONCE IN_FLIGHT`."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import etcd3

_VALUE = b"x" * 256


def _alone(work: Callable[[], Any], count: int) -> dict[str, float]:
    seconds = []
    cpu_s = time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return {
        "p50_ms": round(statistics.median(seconds) * 1e3, 2),
        "p99_ms": round(statistics.quantiles(seconds, n=100)[98] * 1e3, 2),
        "cpu_us": round((time.process_time() - cpu_s) / count * 1e6),
    }


def _at_once(work: Callable[[], Any], count: int, in_flight: int) -> dict[str, float]:
    with ThreadPoolExecutor(in_flight) as pool:
        began = time.perf_counter()
        list(pool.map(lambda _: work(), range(count)))
        return {"per_s": round(count / (time.perf_counter() - began))}


def main(endpoint: str, alone: int, at_once: int, in_flight: int) -> None:
    host, _, port = endpoint.rpartition(":")
    client = etcd3.client(host=host, port=int(port), timeout=5)
    client.put("/bench/guard", b"")
    guard = client.get("/bench/guard")[1].create_revision
    kept = client.lease(30)

    def txn() -> None:
        make = client.transactions
        client.transaction([make.create("/bench/guard") == guard], [make.put("/bench/key", _VALUE)], [])

    def put() -> None:
        client.put("/bench/key", _VALUE)

    result = {
        "txn": _alone(txn, alone),
        "txn_16": _at_once(txn, at_once, in_flight),
        "put": _alone(put, alone),
        "put_16": _at_once(put, at_once, in_flight),
        "get": _alone(lambda: client.get("/bench/key"), alone),
        "keepalive": _alone(lambda: list(kept.refresh()), alone),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:]))
