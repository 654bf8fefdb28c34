"""Two nodes and a witness bear the loss of one: the witness votes, holds no keys and leads nothing."""

from __future__ import annotations

from collections.abc import Callable

from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import found, join, leader, members
from tests.node import until


def test_a_witness_makes_two_nodes_bear_the_loss_of_one(cluster: Callable[[int], Cluster]) -> None:
    bed = cluster(3)
    bed.start()
    n1, n2, n3 = bed.machines
    found(n1)
    join(n2, n1)
    assert not members(n1)["n2"]["voter"], "its loss must not stop the first"
    assert "n2 has no vote yet" in n1.get("/cluster")["warnings"][0]
    join(n3, n1, "--witness")
    until(lambda: all(each["voter"] for each in members(n1).values()), "three votes", 20)
    assert {name: each["role"] for name, each in members(n2).items()} == {"n1": "member", "n2": "member", "n3": "witness"}
    assert n1.get("/cluster")["warnings"] == []
    assert n3.get("/crypto/status")["locked"]

    faults.power_off(n1)
    until(lambda: leader(bed, n1) is n2, "n2 leads", 20)
    until(lambda: n2.api("PUT", "/settings", {"title": "by two"}, timeout_s=5).status == 200, "a write is accepted", 10)
    assert leader(bed, n1, n2) is None, "the witness leads nothing"


def test_a_second_node_that_has_no_vote_yet_stops_nothing_when_it_is_lost(cluster: Callable[[int], Cluster]) -> None:
    bed = cluster(2)
    bed.start()
    n1, n2 = bed.machines
    found(n1)
    join(n2, n1)
    faults.power_off(n2)
    for number in range(5):
        assert n1.api("PUT", "/settings", {"title": str(number)}, timeout_s=5).status == 200
    until(lambda: members(n1)["n2"]["state"] == "silent", "n2 is missed", 15)
    assert members(n1)["n1"]["leads_kernel"]
