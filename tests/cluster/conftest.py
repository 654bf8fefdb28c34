"""`cluster(n)`: n machines on a bridge of their own, removed with every trace when the file's tests have ended.

`formed(n)`: the same, switched on and joined to one cluster by the real commands. Faults are in `tests.bed.faults`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.bed.cluster import Cluster
from tests.bed.forming import form


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[int], Cluster]]:
    """Makes a cluster; its machines are switched off at first."""
    with ExitStack() as beds:
        yield lambda count: beds.enter_context(Cluster(count))


@pytest.fixture(scope="module")
def formed(cluster: Callable[[int], Cluster]) -> Callable[[int], Cluster]:
    def make(count: int) -> Cluster:
        made = cluster(count)
        made.start()
        form(made)
        return made

    return make
