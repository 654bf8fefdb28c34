"""Authorities, nodes with their files, and one handshake between two of them in memory."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from piccolod.pki import channel
from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Identity, Role

CLUSTER = "c0ffee00c0ffee00c0ffee00c0ffee00"
ADDRESS = "10.77.0.1"


@dataclass(frozen=True)
class Files:
    """What a node has in `state_dir/cluster`."""

    cert: Path
    key: Path
    ca: Path

    def server(self, require_client: bool = True, *, expired_too: bool = False) -> ssl.SSLContext:
        return channel.server_context(self.cert, self.key, self.ca, require_client, expired_too=expired_too)

    def client(self, *, expired_too: bool = False) -> ssl.SSLContext:
        return channel.client_context(self.cert, self.key, self.ca, expired_too=expired_too)


NodeMaker = Callable[..., Files]


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create(CLUSTER)


@pytest.fixture()
def node(tmp_path: Path, authority: Authority) -> NodeMaker:
    """`node("n1")`: its files; `by` another authority, `signed_s` another clock of the signer."""

    def make(
        name: str, *, by: Authority | None = None, trusts: Authority | None = None, cluster: str = CLUSTER,
        role: Role = Role.MEMBER, signed_s: float | None = None,
    ) -> Files:  # fmt: skip
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        files = Files(folder / "node.pem", folder / "node.key", folder / "ca.pem")
        key = make_key()
        signer = by or authority
        signed = signer.sign(make_request(key), Identity(cluster, name, role), ADDRESS, signed_s or time.time())
        files.cert.write_text(signed)
        files.key.write_bytes(key)
        files.ca.write_text((trusts or signer).pem)
        return files

    return make


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """(The server's side, the client's side) after a whole handshake and one byte each way; raises what either raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_side=False)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [ours, theirs]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            break
    assert not waiting
    for sender, reader in ((theirs, ours), (ours, theirs)):
        sender.write(b"x")
        assert reader.read(1) == b"x"
    return ours, theirs
