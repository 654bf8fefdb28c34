"""RestartOnKernelRevChange with real processes."""

from __future__ import annotations

import time

import pytest

from tests.unit.supervisor.conftest import row, wait_for

TABLE = [
    row("persistence"),
    row("api", restart_on_kernel_rev_change=True, reads=["settings"]),
    row("router.0"),
]


@pytest.fixture
def node(make_node):
    return make_node(TABLE)


def verified(node, rev: int, *, leader: bool, collections=("settings",), sender="persistence") -> None:
    node.order(sender, t="VERIFIED", rev=rev, collections=list(collections), leader=leader)


def test_a_verified_rev_restarts_the_flagged_module_of_a_follower_and_nobody_else(node):
    node.start()
    before = {name: each["pid"] for name, each in node.modules().items()}
    verified(node, 5, leader=False)
    node.wait_replaced("api", before["api"])
    assert node.pid("router.0") == before["router.0"]
    assert node.pid("persistence") == before["persistence"]
    assert "rev 5" in node.ask("why", name="api")[0]["reason"]
    assert node.ask("why", name="api")[0]["planned"]


def test_the_leaders_own_commit_restarts_nothing_and_counts_as_applied(node):
    node.start()
    pid = node.pid("api")
    verified(node, 5, leader=True)
    wait_for(lambda: node.module("api")["applied_rev"] == 5, "it counts as applied")
    time.sleep(0.6)
    assert node.pid("api") == pid


def test_a_rev_of_other_collections_restarts_nothing(node):
    node.start()
    pid = node.pid("api")
    verified(node, 5, leader=False, collections=("apps",))
    wait_for(lambda: node.module("api")["applied_rev"] == 5, "it counts as applied")
    assert node.pid("api") == pid


def test_a_module_that_reloads_is_not_restarted(node):
    node.words("api", "reloads")
    node.start()
    pid = node.pid("api")
    verified(node, 5, leader=False)
    wait_for(lambda: node.module("api")["applied_rev"] == 5, "it has reloaded")
    assert node.pid("api") == pid


def test_a_module_that_is_busy_is_restarted_once_its_work_is_done(node):
    node.start()
    pid = node.pid("api")
    node.order("api", t="BUSY", on=True)
    time.sleep(0.3)
    verified(node, 5, leader=False)
    time.sleep(1.0)
    assert node.pid("api") == pid
    node.order("api", t="BUSY", on=False)
    node.wait_replaced("api", pid)
    verified(node, 6, leader=False)
    node.wait_replaced("api", node.pid("api"))


def test_only_persistence_may_say_what_is_verified(node):
    node.start()
    pid = node.pid("api")
    verified(node, 5, leader=False, sender="router.0")
    time.sleep(0.8)
    assert node.pid("api") == pid
