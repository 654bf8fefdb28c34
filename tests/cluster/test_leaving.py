"""The leader leaves, of three, of two, and last of all: another one leads before it goes, and nobody's store is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bed.cluster import Cluster
from tests.bed.forming import could_lead, is_alone, join, leader, members, wait_leader
from tests.node import until


@pytest.fixture(scope="module")
def three(formed: Callable[[int], Cluster]) -> Cluster:
    made = formed(3)
    until(lambda: all(each["voter"] for each in members(made["n1"]).values()), "three votes", 30)
    return made


def leaves(cluster: Cluster, left: int) -> None:
    leaver = wait_leader(cluster)
    assert leaver.api("PUT", "/settings", {"title": f"before {leaver.name} left"}).status == 200
    told = leaver.ctl("cluster", "leave", "-y", timeout_s=120)
    assert told.returncode == 0, told.stderr
    assert "another node takes the kernel over" in told.stderr
    until(lambda: is_alone(leaver), f"{leaver.name} is alone", 30)
    next_one = wait_leader(cluster, leaver)
    until(lambda: leaver.name not in members(next_one) and len(members(next_one)) == left, "it is off the list", 20)
    assert next_one.get("/settings")["title"] == f"before {leaver.name} left"
    until(lambda: next_one.api("PUT", "/settings", {"title": "after"}).status == 200, "a write is accepted", 20)


def test_the_leader_of_three_leaves_and_the_leader_of_the_two_that_are_left(three: Cluster) -> None:
    leaves(three, 2)
    leaves(three, 1)


def test_the_last_one_is_told_that_nobody_can_follow_it(three: Cluster) -> None:
    last = wait_leader(three)
    done = last.ctl("cluster", "leave", "-y", timeout_s=60)
    assert done.returncode == 1
    assert f"{last.name} leads the cluster and cannot leave now" in done.stderr
    assert leader(three) is last and sorted(members(last)) == [last.name]


def test_the_first_of_two_leaves_though_it_alone_has_a_vote(three: Cluster) -> None:
    last = wait_leader(three)
    second = next(each for each in three.machines if each is not last)
    join(second, last)
    until(lambda: [each["voter"] for each in members(last).values()].count(True) == 1, "the second is a learner", 20)
    until(lambda: could_lead(second, last), "it could take over", 30)
    leaves(three, 1)
    assert members(second)[second.name]["voter"]
