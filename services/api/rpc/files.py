"""The node's files as the rpc needs them: beside their TLS, what the certificate says and what is signed with its key."""

from __future__ import annotations

from pathlib import Path

from piccolod.errors import Unavailable
from piccolod.pki import authority, node_files, proof
from piccolod.pki.authority import Signed
from piccolod.protocol.unlocking import PURPOSE, SignedAsk


class NodeFiles(node_files.NodeFiles):
    def signed(self) -> Signed:
        """What the certificate says. Raises Invalid, Unavailable."""
        return authority.read(_read(self.certificate).decode("ascii", "replace"))

    def request(self) -> str:
        """The request for the next certificate, for the same key. Raises Invalid, Unavailable."""
        return authority.make_request(_read(self.key))

    def sign_ask(self, ask: bytes) -> SignedAsk:
        """With the key of the certificate. Raises Invalid, Unavailable."""
        key, signature = proof.sign(_read(self.key), PURPOSE, ask)
        return SignedAsk(ask=ask, key=key, signature=signature)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unavailable(f"{file}: {error.strerror}", hint="see the disk, and who may read it") from error
