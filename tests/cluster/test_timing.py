"""The timing of a cluster follows from what its first machine measured, with podman's own containers; and who asks is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.bed.cluster import Cluster
from tests.bed.machine import Machine


@pytest.fixture(scope="module")
def lone(cluster: Callable[[int], Cluster]) -> Machine:
    made = cluster(1)
    made.start()
    return made["n1"]


def test_a_cluster_is_founded_with_the_end_of_a_real_container_and_nothing_of_that_is_left(lone: Machine) -> None:
    lone.unlock()
    done = lone.ctl("cluster", "init", "--profile", "auto", timeout_s=90)
    assert done.returncode == 0, done.stderr
    found = re.search(r"timing (\w+): F ([\d.]+) ms, fsync p99 .*; F of a container, and no other node", done.stderr)
    assert found is not None, done.stderr
    kept = json.loads((lone.state / "cluster/timing.json").read_bytes())
    assert kept["profile"] == found[1] == lone.get("/cluster")["profile"]
    assert kept["stop_s"] * 1000 == pytest.approx(float(found[2]), rel=0.01)
    print(f"F {found[2]} ms")
    assert lone.podman("ps", "--all", "--format", "{{.Names}}").split() == []
    assert not (lone.run / "measure").exists()
