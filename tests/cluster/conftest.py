"""`cluster(n)`: n machines on a bridge of their own, removed with every trace when the file's tests have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.bed.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[int], Cluster]]:
    """Makes a cluster; its machines are switched off at first."""
    with ExitStack() as beds:
        yield lambda count: beds.enter_context(Cluster(count))
