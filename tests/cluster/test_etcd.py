"""A whole piccolod that hosts a member of etcd, with certificates: shown like its other programs, its alarms by name."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import etcd_conf
from piccolod.etcd_conf import Settings
from piccolod.paths import Paths
from tests.etcd import Authority, Member
from tests.node import Node, free_port, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("etcd"), reason="needs root and etcd"),
]


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node() as node:
        yield node


def with_etcd(node: Node, **more: int) -> Member:
    """Makes the node the only member of an etcd; returns a way to speak to it."""
    authority = Authority(node.state / "cluster")
    cert, key = authority.sign("n1")
    settings = Settings(
        "n1", f"https://127.0.0.1:{free_port()}", f"https://127.0.0.1:{free_port()}", "test",
        ca=str(authority.ca), cert=str(cert), key=str(key), **more,
    )  # fmt: skip
    etcd_conf.write(settings, Paths(node.state, node.run).etcd_conf)
    return Member(node.folder / "client", settings)


def test_a_node_alone_has_no_etcd_and_pays_nothing_for_it(node):
    node.start()
    assert "etcd" not in node.modules()
    for name in ("consensus", "api"):
        assert "cygrpc" not in maps(node.pid(name))


def test_it_is_listed_and_its_alarm_is_named_and_heals(node):
    client = with_etcd(node, quota_bytes=16 << 20)
    node.start()
    assert "cygrpc" in maps(node.pid("consensus"))
    assert "etcd" in node.ctl("modules", "list").stdout

    def full() -> bool:
        return client.ctl("put", "/big", check=False, stdin="x" * 1_000_000) == ""

    until(full, "etcd takes no more", 20, 0)
    until(lambda: "alarm NOSPACE on n1" in node.modules()["etcd"]["reason"], "the alarm is named", 15)
    until(lambda: node.modules()["etcd"]["level"] == "OK", "it is well again", 30)
    client.ctl("put", "/small", "1")


def test_consensus_and_etcd_die_and_come_back_each_on_its_own(node):
    client = with_etcd(node)
    node.start()
    client.ctl("put", "/a", "kept")
    for name in ("etcd", "consensus"):
        before = {each: node.pid(each) for each in ("etcd", "consensus")}
        os.kill(before[name], signal.SIGKILL)
        until(lambda name=name, before=before: node.pid(name) not in (0, before[name]), f"{name} is replaced")
        node.wait_up()
        other = ({"etcd", "consensus"} - {name}).pop()
        assert node.pid(other) == before[other]
    assert "kept" in client.ctl("get", "/a")
    assert node.stop(signal.SIGTERM) < 6
    assert not [pid for pid in node.survivors() if b"--data-dir" in Path(f"/proc/{pid}/cmdline").read_bytes()]
