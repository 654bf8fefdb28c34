"""An app of the member that is left stops with the quorum, and serves again in the cluster that is begun anew."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import said, switch_over
from tests.bed.machine import Machine
from tests.node import until

pytestmark = pytest.mark.timeout(240)


def test_an_app_at_home_on_the_member_that_is_left_serves_again(formed: Callable[[int], Cluster]) -> None:
    pair = formed(2)
    pair.load_demo_image()
    n1, n2 = pair.machines
    switch_over(pair, n2)
    n2.install(n2.demo_manifest("hello"))
    port = n2.public_port("hello")
    for _ in range(2):
        said(n2, "apps", "stop", "hello")
        said(n2, "apps", "start", "hello")
    until(lambda: answers(n2, port), "it serves", 20)
    before = n2.get("/leadership/app:hello")
    assert before["epoch"] >= 3
    faults.power_off(n1)
    until(lambda: not n2.named("conmon"), "without a quorum it stops", 30)

    said(n2, "cluster", "recover", "--force", timeout_s=160)
    until(lambda: answers(n2, port), "it serves again, at the same place", 60, 0.2)
    after = n2.get("/leadership/app:hello")
    assert (after["role"], after["node"]) == ("leader", "n2")
    assert after["epoch"] > before["epoch"], "epochs go on: a router takes no lower one"


def answers(machine: Machine, port: int) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return machine.fetch(port).status == 200
    return False
