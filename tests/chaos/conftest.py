"""One unlocked node with the demo app, shared by the tests of a file: each leaves it healthy or fails."""

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
        node.install(node.demo_manifest())
        yield node
