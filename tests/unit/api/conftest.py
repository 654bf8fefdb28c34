from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.api.node import Node, running


@pytest.fixture
def node() -> Iterator[Node]:
    with running() as made:
        yield made
