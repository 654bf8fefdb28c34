"""The key that survives a crash, and does not survive a lock."""

from __future__ import annotations

import json
import os
import signal

from tests.unit.supervisor.conftest import row, wait_for

STORE = row("persistence", holds_keys=True)


def keys(node, module="persistence") -> dict[str, str]:
    return json.loads(node.read(f"{module}.fds"))["keys"]


def test_a_deposit_reaches_the_next_life_after_kill_9_again_and_again(make_node):
    node = make_node([STORE], policy={"first_s": 0.0})
    node.words("persistence", "deposit=the-key")
    node.start()
    assert keys(node) == {}
    assert node.read("persistence.deposit") == "None"
    node.words("persistence")
    for _ in range(3):
        pid = node.kill("persistence")
        node.wait_replaced("persistence", pid)
        assert keys(node) == {"key:secret": "the-key"}


def test_a_frozen_holder_loses_nothing(make_node):
    node = make_node([STORE])
    node.words("persistence", "deposit=the-key")
    node.start()
    node.words("persistence")
    pid = node.kill("persistence", signal.SIGSTOP)
    node.wait_replaced("persistence", pid)
    assert keys(node) == {"key:secret": "the-key"}


def test_lock_drops_every_deposit_and_restarts_those_who_hold_keys_but_not_the_sender(make_node):
    node = make_node([STORE, row("volumes", holds_keys=True), row("api")])
    node.words("persistence", "deposit=the-key")
    node.start()
    before = {name: each["pid"] for name, each in node.modules().items()}
    node.words("persistence", "lock")
    pid = node.kill("persistence")
    sender = node.wait_replaced("persistence", pid)["pid"]
    node.wait_replaced("volumes", before["volumes"])
    assert node.pid("persistence") == sender
    assert node.pid("api") == before["api"]
    node.words("persistence")
    node.wait_replaced("persistence", node.kill("persistence"))
    assert keys(node) == {}


def test_a_module_that_holds_no_keys_can_neither_deposit_nor_lock(make_node):
    node = make_node([STORE, row("api")])
    node.words("persistence", "deposit=the-key")
    node.words("api", "deposit=mine", "lock")
    node.start()
    assert "holds no keys" in node.read("api.deposit")
    node.words("persistence")
    node.wait_replaced("persistence", node.kill("persistence"))
    assert keys(node) == {"key:secret": "the-key"}


def test_memory_that_is_not_sealed_is_refused(make_node):
    node = make_node([STORE])
    node.words("persistence", "unsealed=1")
    node.start()
    assert "all its seals" in node.read("persistence.deposit")


def test_no_key_is_in_the_zygote_the_log_writer_or_another_module(make_node):
    node = make_node([STORE, row("api")])
    node.words("persistence", "deposit=the-key")
    node.start()
    node.kill("api")
    wait_for(lambda: node.module("api")["restarts"] == 1 and node.module("api")["state"] == "ready", "api is back")
    tree = node.tree()
    assert node.process is not None
    for pid in (tree["zygote"]["pid"], tree["log_writer"]["pid"], node.pid("api")):
        assert not any("memfd:secret" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in _fds(pid))
    assert sum("memfd:secret" in os.readlink(f"/proc/{node.process.pid}/fd/{fd}") for fd in _fds(node.process.pid)) == 1


def _fds(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")
