"""One unlocked node with the demo app and its volume, shared by the tests of a file: each leaves it healthy or fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.node import Node


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        node.install(node.demo_manifest(extra="storage: {persistent: {data: {container: /data, size_limit: 16MiB}}}\n"))
        yield node
