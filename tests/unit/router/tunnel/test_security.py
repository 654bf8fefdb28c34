from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from piccolod.errors import Forbidden, Unauthenticated
from piccolod.pki import authority as pki
from piccolod.pki.identity import Role
from piccolod.pki.node_files import NodeFiles
from services.router.tunnel import security as security_module
from services.router.tunnel.security import Peer, Security

from ...pki.conftest import CLUSTER, NodeMaker, authority, handshake, node

ROOT = Path(__file__).resolve().parents[4]

__all__ = ["authority", "node"]


def test_a_peer_is_who_its_certificate_says_with_the_key_that_the_list_has(node: NodeMaker, tmp_path: Path) -> None:
    n1, n2 = node("n1"), node("n2")
    security = Security(NodeFiles(n1.cert.parent), CLUSTER)
    server, client = handshake(security.server(), n2.client())
    for _ in range(2):
        assert security.peer(server) == Peer("n2", pki.read(n2.cert.read_text()).key)
    assert security.peer(client).node == "n1"


def test_a_witness_and_a_node_of_another_cluster_are_no_peers(node: NodeMaker) -> None:
    security = Security(NodeFiles(node("n1").cert.parent), CLUSTER)
    for stranger in (node("n2", role=Role.WITNESS), node("n3", cluster="beefbeef")):
        server, _ = handshake(security.server(), stranger.client())
        for _ in range(2):
            with pytest.raises(Forbidden):
                security.peer(server)


def test_a_certificate_that_ends_while_it_is_remembered_counts_no_more(
    node: NodeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    security = Security(NodeFiles(node("n1").cert.parent), CLUSTER)
    server, _ = handshake(security.server(), node("n2").client())
    security.peer(server)
    later = security_module.time.time() + 100 * 86400
    monkeypatch.setattr(security_module.time, "time", lambda: later)
    with pytest.raises(Unauthenticated, match="has ended"):
        security.peer(server)


def test_a_router_loads_no_more_for_its_tunnels_than_tls() -> None:
    code = (
        "import sys, services.router.service, piccolod.pki.node_files\n"
        "loaded = [n for n in sys.modules if n.startswith(('cryptography', 'piccolod.pki.authority'))]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
