"""The certificate authority of the cluster as a document, from the first setup on.

A document like any other, so sealed wherever it rests or travels; no module but persistence may read its collection. On a
node alone it signs nothing: it is there so that the log of one node stays valid when others join it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from piccolod.errors import StoreCorrupt
from piccolod.pki.authority import Authority
from services.persistence.state import State

COLLECTION: Final = "pki"
ID: Final = "ca"

create: Final = Authority.create


def find(state: State) -> Authority | None:
    """The authority of this store; None before it is made. Raises StoreCorrupt for a document that is none."""
    found = state.get(COLLECTION, ID)
    if found is None:
        return None
    try:
        ca = msgspec.msgpack.decode(found.body, type=Authority)
        if ca.signer.public_key() == ca.parsed.public_key():
            return ca
    except ValueError:
        pass
    raise StoreCorrupt(f"{COLLECTION}/{ID} is no certificate authority") from None


def document(ca: Authority) -> dict[str, Any]:
    return msgspec.structs.asdict(ca)
