"""What the tests of a file share: one unlocked node with the demo app and its volume, or a cluster of three on trial.

Each test leaves them healthy or fails.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import form
from tests.bed.trial import Trial
from tests.chaos.rounds import ROUNDS, SEED
from tests.node import Node


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        node.install(node.demo_manifest(extra="storage: {persistent: {data: {container: /data, size_limit: 16MiB}}}\n"))
        yield node


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    """Three machines, one cluster, written to until the file's tests have ended."""
    with Cluster(3) as cluster:
        cluster.start()
        form(cluster)
        with Trial(cluster) as trial:
            trial.settled()
            yield trial


@pytest.fixture(autouse=True)
def _healed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Also after a test that failed: the next one is about another fault."""
    yield
    if "trial" in request.fixturenames:
        faults.heal(request.getfixturevalue("trial").cluster)


@pytest.fixture(params=range(ROUNDS))
def chance(request: pytest.FixtureRequest) -> random.Random:
    """A test that takes it comes ROUNDS times, each time with another choice."""
    seed = SEED + int(request.param)
    print(f"PICCOLO_TEST_SEED={seed}")
    return random.Random(seed)
