"""The TLS of this node's tunnels, and who is at the other end of one."""

from __future__ import annotations

import ssl
import time
from typing import Final, NamedTuple

from piccolod.errors import Unauthenticated
from piccolod.pki import channel
from piccolod.pki.identity import Identity, Role
from piccolod.pki.node_files import NodeFiles

_FACES: Final = 256  # certificates that are remembered: those of a cluster, and of their renewals


class Peer(NamedTuple):
    """`key`: SHA-256 of the public key that it has proven to have, in hex."""

    node: str
    key: str


class Security:
    """`cluster` is the id of the one that this node is a member of."""

    def __init__(self, files: NodeFiles, cluster: str) -> None:
        self.cluster: Final = cluster
        self._files = files
        # Reading a certificate costs more than all the rest of a resumed handshake.
        self._faces: dict[bytes, tuple[Identity, float, str]] = {}

    def client(self) -> ssl.SSLContext:
        """Raises Unavailable."""
        return self._files.client()

    def server(self) -> ssl.SSLContext:
        """Raises Unavailable."""
        return self._files.server(members_only=True)

    def look(self) -> bool:
        """Takes up a certificate that was renewed; whether it was. Raises Unavailable."""
        return self._files.look()

    def peer(self, tls: ssl.SSLObject) -> Peer:
        """A member of this cluster, at the end of a whole handshake. Raises Unauthenticated, Forbidden, Invalid."""
        shown = tls.getpeercert(binary_form=True) or b""
        face = self._faces.get(shown)
        if face is None:
            face = (*channel.ended_peer(tls), channel.peer_key(tls))
            if len(self._faces) >= _FACES:
                self._faces.clear()
            self._faces[shown] = face
        identity, ends_s, key = face
        if time.time() >= ends_s:
            raise Unauthenticated(f"the certificate of {identity.node} has ended", hint="see that the clocks are right")
        return Peer(identity.admitted(self.cluster, Role.MEMBER).node, key)
