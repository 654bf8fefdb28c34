"""Nodes of one cluster, each with its real API on real sockets and a real certificate; the modules behind it are doubles.

They listen on addresses of their own in 127.0.0.0/8. What a real persistence replicates, here all doubles share.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from piccolod import cluster_mode
from piccolod.config import Config
from piccolod.errors import Forbidden, Locked, PiccoloError
from piccolod.pki import authority as pki
from piccolod.pki import channel
from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Identity, Role
from piccolod.protocol.base import Nothing
from piccolod.protocol.cluster import AddMember, Admission, KnownMember, Timing
from piccolod.protocol.events import LeadershipRoleChanged
from piccolod.protocol.joining import CheckNode, IssueCertificate, Issued, KeepCertificate, Redeem, Redeemed
from piccolod.protocol.persistence import Document
from tests.unit.api.node import FakeModule, Modules, Node, free_port, lead, running

CLUSTER = "c0ffee00c0ffee00c0ffee00c0ffee00"


class Cluster:
    """`nodes` by name. The one that leads is told to all by `elect`."""

    def __init__(self) -> None:
        self.authority = Authority.create(CLUSTER)
        self.rpc_port = free_port()
        self.documents: dict[tuple[str, str], Document] = {}
        self.nodes: dict[str, Node] = {}
        self.listed: dict[str, str] = {}  # the key of each node that is one
        self.keys: dict[str, bytes] = {}
        self._epoch = 0

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def address(self, name: str) -> str:
        return f"127.0.0.{10 + int(name.removeprefix('n'))}"

    def certificate(
        self, name: str, *, key: bytes | None = None, role: Role = Role.MEMBER, cluster: str = CLUSTER, now_s: float | None = None,
        by: Authority | None = None,
    ) -> str:  # fmt: skip
        """A certificate of a node, signed `now_s`."""
        request = make_request(key or self.keys[name])
        identity = Identity(cluster, name, role)
        return (by or self.authority).sign(request, identity, self.address(name), time.time() if now_s is None else now_s)

    def list_node(self, name: str, key: bytes) -> None:
        self.listed[name] = pki.key_of_request(make_request(key))

    def elect(self, name: str | None, *, url: bool = True) -> None:
        """`name` leads and all know it; None: nobody does."""
        self._epoch += 1
        for own, node in self.nodes.items():
            lead(node, *(["kernel"] if own == name else []), epoch=self._epoch)
            role = "unknown" if name is None else "leader" if own == name else "follower"
            node.tell(self._role(role, name or "", url))

    def believe(self, name: str, *, leader: str, address: str = "") -> None:
        """What one node heard, right or wrong."""
        heard = self._role("follower", leader, True)
        self.nodes[name].tell(msgspec.structs.replace(heard, address=address) if address else heard)

    def server_context(self, name: str, **other: Any) -> ssl.SSLContext:
        """TLS with a good certificate of a node, for what is not that node; `other`: what its certificate says instead."""
        key = make_key()
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder, "node.pem"), Path(folder, "node.key"), Path(folder, "ca.pem")
            files[0].write_text(self.certificate(name, key=key, **other))
            files[1].write_bytes(key)
            files[2].write_text(self.authority.pem)
            return channel.server_context(*files, require_client=False)

    def _role(self, role: str, name: str, url: bool) -> LeadershipRoleChanged:
        address = self.address(name) if name else ""
        at = f"http://127.0.0.1:{self.nodes[name].port}" if name in self.nodes and url else ""
        return LeadershipRoleChanged(
            resource="kernel", role=role, node=name, address=address, epoch=self._epoch, token=1, reason="test", url=at
        )  # fmt: skip

    # --- one node

    def prepare(self, name: str, certificate: str | None = None) -> Callable[[FakeModule, Modules], None]:
        """`state_dir/cluster` as consensus writes it, and the commands that a member's modules answer."""

        def before(module: FakeModule, modules: Modules) -> None:
            folder = module.paths.cluster
            cluster_mode.make_folder(folder)
            key = self.keys.setdefault(name, make_key())
            (folder / "node.key").write_bytes(key)
            (folder / "node.pem").write_text(certificate or self.certificate(name))
            (folder / "ca.pem").write_text(self.authority.pem)
            cluster_mode.enter(folder, cluster_mode.Mode(cluster=CLUSTER, node=name, since_ms=1))
            self.list_node(name, key)
            modules.documents = self.documents
            modules.replies |= {
                IssueCertificate: self._issue,
                KeepCertificate: lambda request: self.keep(module.config, request),
                Redeem: self.redeem,
                AddMember: self.add_member,
                CheckNode: lambda request: self._check(modules, request),
            }

        return before

    def _issue(self, request: IssueCertificate) -> Issued:
        certificate = self.authority.sign(
            request.csr, Identity(CLUSTER, request.node, request.role), self.address(request.node), time.time()
        )
        return Issued(certificate=certificate, ca=self.authority.pem)

    def _check(self, modules: Modules, request: CheckNode) -> Nothing:
        if modules.locked:
            raise Locked("the store is locked")
        if self.listed.get(request.node) != request.key:
            raise Forbidden(f"{request.node} is no node of this cluster any more")
        return Nothing()

    def keep(self, config: Config, request: KeepCertificate) -> Nothing:
        draft = config.paths.cluster / "node.pem.new"
        draft.write_text(request.certificate)
        draft.replace(config.paths.cluster / "node.pem")
        return Nothing()

    def redeem(self, request: Redeem) -> Redeemed:
        identity = Identity(CLUSTER, request.node, request.role)
        certificate = self.authority.sign(request.csr, identity, request.address, time.time())
        return Redeemed(cluster=CLUSTER, certificate=certificate, ca=self.authority.pem, rev=9)

    def add_member(self, request: AddMember) -> Admission:
        fields = {name: getattr(request, name) for name in ("address", "client_url", "rpc", "role", "api_url")}
        return Admission(
            cluster=CLUSTER,
            initial_cluster={request.node: request.peer_url},
            etcd_token="t",
            members={request.node: KnownMember(**fields)},
            timing=Timing(profile="fast", stop_s=0.1),
        )


@contextmanager
def formed(
    *names: str,
    certificates: Callable[[Cluster], dict[str, str]] = lambda cluster: {},
    refuse_listen: PiccoloError | None = None,
) -> Iterator[Cluster]:
    """`certificates`: what a node has in the place of a good one."""
    cluster = Cluster()
    for name in names:
        cluster.keys[name] = make_key()
    given = certificates(cluster)
    with ExitStack() as stack:
        for name in names:
            node = stack.enter_context(
                running(
                    f"[cluster]\npeer_port = {cluster.rpc_port - 1}",
                    name=name,
                    address=cluster.address(name),
                    refuse_listen=refuse_listen,
                    before=cluster.prepare(name, given.get(name)),
                )
            )
            node.make_ready()
            cluster.nodes[name] = node
        yield cluster


@contextmanager
def impostor(
    cluster: Cluster, name: str, behave: Callable[[ssl.SSLSocket], object], /, certificate_of: str = "", **other: Any
) -> Iterator[None]:
    """Something at the address of a node that is no piccolod, though it has a certificate."""
    listener = socket.create_server((cluster.address(name), cluster.rpc_port))
    listener.settimeout(10)
    context = cluster.server_context(certificate_of or name, **other)

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return  # the end of the test
            with accepted, suppress(OSError), context.wrap_socket(accepted, server_side=True) as tls:
                behave(tls)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in `accept`
        thread.join(10)
        listener.close()


def answering(body: bytes) -> Callable[[ssl.SSLSocket], None]:
    """For `impostor`: 200, and this."""

    def behave(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    return behave


def codes(node: Node, action: str) -> list[tuple[str, int, str]]:
    """(actor, status, code) of what was audited for an action."""
    return [(each.actor, each.status, each.code) for each in node.audits() if each.action == action]
