"""This node's own member of etcd without a quorum: one that does not answer is told apart from one that has nothing."""

from __future__ import annotations

import asyncio
import shutil
import socket
from contextlib import aclosing
from pathlib import Path

import pytest

from piccolod import etcd_conf
from piccolod.errors import StoreUnavailable
from piccolod.leadership import keys
from services.consensus import cluster_records, wire
from services.consensus.cluster_records import HeadRecord
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import Put, Transaction
from services.consensus.joining import own_member
from services.consensus.joining.own_member import OwnMember
from tests.etcd import Cluster, Member

PREFIX = cluster_records.prefix("c")


async def read(endpoint: str) -> tuple[int, bool]:
    """How far its log goes, and whether something could not be read."""
    settings = etcd_conf.Settings("n1", "http://127.0.0.1:1", f"http://{endpoint}", "token")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_member, "local_client", lambda _: Client((endpoint,), None, rpc_s=1.0))
        async with aclosing(OwnMember(settings, PREFIX)) as own:
            return await own.head_rev(), own.unread


async def write(member: Member) -> None:
    client = Client((member.endpoint,), None, rpc_s=1.0)
    try:
        head = wire.encode(HeadRecord(5, b"digest", 7))
        await client.transact(Transaction((), (Put(PREFIX + keys.KERNEL_HEAD, head),)), 5.0)
    finally:
        await client.close()


def test_one_that_does_not_answer_is_unread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert asyncio.run(read(f"127.0.0.1:{port}")) == (0, True)


@pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")
def test_without_a_quorum_it_answers_until_it_is_restarted() -> None:
    with Cluster(3) as etcd:
        left, *others = etcd.members
        asyncio.run(write(left))
        for each in others:
            each.kill()
        assert asyncio.run(read(left.endpoint)) == (5, False)
        left.kill()
        left.start()
        etcd.wait_serving(left)
        assert asyncio.run(read(left.endpoint)) == (0, True), "etcd 3.4 serves no client before a quorum knows it"


def test_a_key_that_cannot_be_read_is_an_error_of_this_node_and_says_which(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("ca.pem", "node.pem", "node.key")]
    files[0].write_bytes(b"ca")
    ca, cert, key = map(str, files)
    settings = etcd_conf.Settings("n1", "https://127.0.0.1:1", "https://127.0.0.1:2", "token", ca=ca, cert=cert, key=key)
    with pytest.raises(StoreUnavailable, match=r"cannot read .*node\.pem: No such file"):
        OwnMember(settings, PREFIX)
