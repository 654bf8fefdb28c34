"""The tunnel, one worker on each of two nodes, against two HAProxies with one thread each that speak mutual TLS 1.3 to each other.

`measure()` returns medians and ratios as `relay` does, and the latency that a tunnel adds to a local route; run as a program it
prints a table and the same as JSON. All certificates are of one authority and of the kind that nodes have.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Identity
from tests.bench import relay
from tests.bench.relay import Side, free_ports, missing, process, run, wait_for
from tests.bench.tunnel_worker import CLUSTER

WORKER: Final = Path(__file__).with_name("tunnel_worker.py")
GOALS: Final = {"keep_alive": 0.8, "new_connections": 0.6, "bulk": 0.8}
LATENCY_GOAL_MS: Final = 0.3
_PAUSE_S: Final = 0.02
_PAGE: Final = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"

_OUT: Final = """
frontend f{public}
  mode tcp
  bind 127.0.0.1:{public}
  default_backend b{public}
backend b{public}
  mode tcp
  server s 127.0.0.1:{target} ssl crt {folder}/both.pem ca-file {folder}/ca.pem verify required ssl-min-ver TLSv1.3
"""
_IN: Final = """
frontend f{public}
  mode tcp
  bind 127.0.0.1:{public} ssl crt {folder}/both.pem ca-file {folder}/ca.pem verify required ssl-min-ver TLSv1.3
  default_backend b{public}
backend b{public}
  mode tcp
  server s 127.0.0.1:{target}
"""


def measure(rounds: int = 5, seconds: int = 2) -> dict[str, Any]:
    """As `relay.measure`, about 20 s a round, and `latency`: what a tunnel adds to a request, and to a new connection."""
    if missing():
        return {figure: {"ratio": None, "missing": missing()} for figure in GOALS} | {"latency": {"added_p50_ms": None}}
    with contextlib.ExitStack() as stack:
        sides, local = _start(stack)
        seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for turn in range(rounds):
            for figure in GOALS:
                # Who comes first alternates: the host's load drifts.
                for side in sorted(sides, reverse=bool(turn % 2)):
                    seen.setdefault((figure, side), []).append(run(figure, sides[side], seconds))
        figures = {figure: relay.summary(figure, seen, GOALS[figure]) for figure in GOALS}
        return figures | {"latency": _latency(local, sides["relay"].http)}


def _start(stack: contextlib.ExitStack) -> tuple[dict[str, Side], int]:
    """(The ways to the servers, the port of a local route beside them)."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunnel-bench-")))
    answers, iperf, relay_http, relay_bulk, local, led_http, led_bulk, peers = free_ports(8)
    proxy_http, proxy_bulk, inner_http, inner_bulk = free_ports(4)
    authority = Authority.create(CLUSTER)
    one, two = (_certify(folder / name, name, authority) for name in ("n1", "n2"))
    server, out, inward = folder / "answers.cfg", folder / "out.cfg", folder / "in.cfg"
    server.write_text(relay.HAPROXY + relay.ANSWERS.format(port=answers))
    ways = (proxy_http, inner_http, answers), (proxy_bulk, inner_bulk, iperf)
    out.write_text(relay.HAPROXY + "".join(_OUT.format(public=a, target=b, folder=one) for a, b, _ in ways))
    inward.write_text(relay.HAPROXY + "".join(_IN.format(public=b, target=c, folder=two) for _, b, c in ways))
    page = folder / "page"
    relay.write_page(page)
    follower = {
        "page": str(page),
        "folder": str(one),
        "peer_port": 0,
        "routes": [
            {"app": answers, "public": relay_http, "leader": "n2", "peer": peers},
            {"app": iperf, "public": relay_bulk, "leader": "n2", "peer": peers},
            {"app": "local", "public": local, "target": answers},
        ],
    }
    leader = {
        "page": str(page),
        "folder": str(two),
        "peer_port": peers,
        "routes": [
            {"app": answers, "public": led_http, "target": answers},
            {"app": iperf, "public": led_bulk, "target": iperf},
        ],
    }
    stack.enter_context(process(["haproxy", "-db", "-f", str(server)]))
    stack.enter_context(process(["iperf3", "-s", "-p", str(iperf)]))
    wait_for(answers)
    wait_for(iperf)
    stack.enter_context(process(["haproxy", "-db", "-f", str(inward)]))
    haproxy = stack.enter_context(process(["haproxy", "-db", "-f", str(out)]))
    env = {**os.environ, "PYTHONPATH": str(relay.ROOT)}
    stack.enter_context(process([sys.executable, str(WORKER), json.dumps(leader)], env=env))
    wait_for(led_bulk)
    worker = stack.enter_context(process([sys.executable, str(WORKER), json.dumps(follower)], env=env))
    for port in (proxy_http, relay_http, local):
        wait_for(port)
    sides = {
        "direct": Side(0, answers, iperf),
        "haproxy": Side(haproxy, proxy_http, proxy_bulk),
        "relay": Side(worker, relay_http, relay_bulk),
    }
    return sides, local


def _certify(folder: Path, name: str, authority: Authority) -> Path:
    folder.mkdir()
    key = make_key()
    certificate = authority.sign(make_request(key), Identity(CLUSTER, name), "127.0.0.1", time.time())
    (folder / "node.key").write_bytes(key)
    (folder / "node.pem").write_text(certificate)
    (folder / "ca.pem").write_text(authority.pem)
    (folder / "both.pem").write_bytes(certificate.encode() + key)
    return folder


def _latency(local: int, tunnel: int) -> dict[str, Any]:
    """Medians of one client alone, in turns, so that a load of the host meets both."""
    requests = [_times(port, 300) for _ in range(5) for port in (local, tunnel)]
    connections = [_connection_times(port, 30) for _ in range(5) for port in (local, tunnel)]
    request = [statistics.median(itertools.chain(*requests[side::2])) for side in (0, 1)]
    connection = [statistics.median(itertools.chain(*connections[side::2])) for side in (0, 1)]
    added = request[1] - request[0]
    return {
        "local_p50_ms": round(request[0], 3),
        "tunnel_p50_ms": round(request[1], 3),
        "added_p50_ms": round(added, 3),
        "connection_local_p50_ms": round(connection[0], 3),
        "connection_tunnel_p50_ms": round(connection[1], 3),
        "goal": LATENCY_GOAL_MS,
        "reached": added <= LATENCY_GOAL_MS,
    }


def _times(port: int, count: int) -> list[float]:
    """Of requests over one connection, milliseconds."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask(sock)
        return [_ask(sock) for _ in range(count)]


def _connection_times(port: int, count: int) -> list[float]:
    """Of one request over a new connection each, milliseconds. There are some between them for a tunnel to be ready again."""
    seen = []
    for _ in range(count):
        time.sleep(_PAUSE_S)
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            _ask(sock)
        seen.append((time.perf_counter() - began) * 1000)
    return seen


def _ask(sock: socket.socket) -> float:
    began = time.perf_counter()
    sock.sendall(_PAGE)
    answer = b""
    while not answer.endswith(b"as an app would send it"):
        part = sock.recv(65536)
        if not part:
            raise RuntimeError("the server ended the connection")
        answer += part
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}")
    outcome = measure()
    latency = outcome.pop("latency")
    print(relay.table(outcome))
    print(f"added latency p50 {latency['added_p50_ms']} ms (goal {LATENCY_GOAL_MS})")
    print(json.dumps(outcome | {"latency": latency}, indent=2))
