"""A store whose snapshot fits into no message of the bus becomes the store of a cluster, and of the node that joins it."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

import pytest

from tests.bed.cluster import Cluster
from tests.bed.forming import join, said
from tests.bed.machine import Machine
from tests.node import until

_VALUE_BYTES = 120 * 1024
_SECRETS = 80  # more than etcd would keep of a log: they go as a snapshot


@pytest.fixture(scope="module")
def pair(cluster: Callable[[int], Cluster]) -> Cluster:
    made = cluster(2)
    made.start()
    return made


def names(machine: Machine) -> list[str]:
    return sorted(each["name"] for each in machine.get("/secrets"))


def test_a_store_of_many_mebibytes_moves_whole(pair: Cluster) -> None:
    n1, n2 = pair["n1"], pair["n2"]
    n1.unlock()
    for number in range(_SECRETS):
        value = base64.b64encode(os.urandom(_VALUE_BYTES)).decode()
        reply = n1.api("PUT", f"/secrets/s{number}", {"value_base64": value})
        assert reply.status in (200, 201), reply
    said(n1, "cluster", "init", "--profile", "fast", timeout_s=120)
    until(lambda: n1.api("GET", "/secrets").status == 200, "its store is open", 30)
    assert len(names(n1)) == _SECRETS
    join(n2, n1)
    until(lambda: names(n2) == names(n1), "the other node has it", 60)
    assert n1.get("/store/revision")["digest"] == n2.get("/store/revision")["digest"]
