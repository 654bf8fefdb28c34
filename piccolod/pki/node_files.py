"""This node's certificate, its key and the authority, from `state_dir/cluster`, and the TLS that follows from them.

consensus alone writes them. A renewed certificate is taken up by the contexts that are there: connections go on with what they
began with, the next one shows the new certificate.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

from piccolod.errors import Unavailable
from piccolod.pki import channel

Look = tuple[int, int]


class NodeFiles:
    def __init__(self, folder: Path) -> None:
        self.certificate: Final = folder / "node.pem"
        self.key: Final = folder / "node.key"
        self.ca: Final = folder / "ca.pem"
        self._seen: Look = (0, 0)
        self._servers: dict[bool, ssl.SSLContext] = {}
        self._clients: dict[bool, ssl.SSLContext] = {}

    def server(self, *, members_only: bool = False) -> ssl.SSLContext:
        """For clients with a certificate and for those without; who may do what is looked at later. Raises Unavailable.

        `members_only`: the handshake itself wants a certificate, and one that has not ended.
        """
        self.look()
        if members_only not in self._servers:
            self._servers[members_only] = channel.server_context(
                self.certificate, self.key, self.ca, require_client=members_only, expired_too=not members_only
            )
        return self._servers[members_only]

    def client(self, *, ended: bool = False) -> ssl.SSLContext:
        """`ended`: also for a server whose certificate has ended. Raises Unavailable."""
        self.look()
        if ended not in self._clients:
            self._clients[ended] = channel.client_context(self.certificate, self.key, self.ca, expired_too=ended)
        return self._clients[ended]

    def look(self) -> bool:
        """Takes up a certificate that was renewed; whether it was. Raises Unavailable."""
        seen = self._look()
        if seen == self._seen:
            return False
        # A context that was given a certificate without its key serves nobody any more: tried out on another one before.
        channel.client_context(self.certificate, self.key, self.ca)
        try:
            for context in (*self._servers.values(), *self._clients.values()):
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise Unavailable(f"{self.certificate} cannot be used: {error.strerror or error}", hint="see the file") from error
        self._seen = seen
        return True

    def _look(self) -> Look:
        try:
            found = os.stat(self.certificate)
        except OSError as error:
            raise Unavailable(f"{self.certificate}: {error.strerror}", hint="see the disk") from error
        return found.st_ino, found.st_mtime_ns
