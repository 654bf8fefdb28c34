"""From `apps install` of the demo image to the first 200 on its public port.

python -m tests.bench.app
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from tests.node import Node, until


def _install(node: Node, name: str) -> float:
    began = time.monotonic()
    reply = node.api("POST", "/apps", node.demo_manifest(name), kind="application/yaml")
    assert reply.status in (200, 201, 202), reply
    port = node.public_port(name)

    def serves() -> bool:
        try:
            return node.fetch(port, timeout_s=5).status == 200
        except OSError:
            return False

    until(serves, "the first 200", 20, every_s=0.005)
    return time.monotonic() - began


def measure(rounds: int = 5) -> dict[str, Any]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        took = []
        for number in range(rounds):
            took.append(_install(node, f"bench-{number}"))
            assert node.api("DELETE", f"/apps/bench-{number}?purge=true").status in (200, 204)
            until(lambda number=number: node.api("GET", f"/apps/bench-{number}").status == 404, "the app gone", 20)
        return {"install_to_first_200_s": statistics.median(took), "rounds_s": [round(value, 3) for value in took]}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
