"""This node's own member of etcd, when it does not answer: that is told apart from one that has nothing."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing

import pytest

from piccolod import etcd_conf
from services.consensus.etcd.client import Client
from services.consensus.joining import own_member
from services.consensus.joining.own_member import OwnMember


def test_one_that_does_not_answer_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        monkeypatch.setattr(own_member, "local_client", lambda _: Client((f"127.0.0.1:{port}",), None, rpc_s=1.0))
        settings = etcd_conf.Settings("n1", "http://127.0.0.1:1", f"http://127.0.0.1:{port}", "token")
        async with aclosing(OwnMember(settings, "/c/")) as own:
            assert not own.unread
            assert await own.head_rev() == 0 and own.unread

    asyncio.run(main())
