"""Who can make persistence die must not get fresh guesses by that."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from services.persistence.limiter import PER_SOURCE
from tests.node import PASSWORD, Node, Reply, until


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        yield node


def guess(node: Node, password: str) -> Reply:
    return node.api("POST", "/crypto/unlock", {"password": password})


def kill_persistence(node: Node) -> None:
    instance = node.instance("persistence")
    node.signal("persistence", signal.SIGKILL)
    until(lambda: node.is_replaced("persistence", instance), "persistence replaced", 5)


def test_killing_persistence_gives_no_fresh_guesses(node: Node) -> None:
    for number in range(PER_SOURCE.free):
        assert guess(node, f"wrong number {number}").status == 401
    kill_persistence(node)
    until(lambda: guess(node, "one more").status == 401, "the first penalty over, of one second", 5, 0.2)
    kill_persistence(node)
    until(lambda: guess(node, "and another").status == 401, "the second penalty over, of two seconds", 10, 0.2)
    refused = guess(node, PASSWORD)
    assert refused.status == 429, "a right one is refused during the penalty, whoever restarts what"
    until(lambda: guess(node, PASSWORD).status == 200, "the owner let in once it is over", 15, 0.3)
    assert "wrong number" not in "".join(path.read_text() for path in (node.run / "guesses").iterdir())
