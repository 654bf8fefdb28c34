"""The key of a volume: 256 random bits, wrapped by the SDEK and bound to the volume's name, kept as a document."""

from __future__ import annotations

import os
from typing import Any, Final

from cryptography.exceptions import InvalidTag

from piccolod.errors import StoreCorrupt
from services.persistence.entry import NONCE_BYTES
from services.persistence.secret import SecretKey

COLLECTION: Final = "volume_keys"


def id_of(app: str, volume: str) -> str:
    return f"{app}.{volume}"


def wrapped(sdek: SecretKey, cluster: str, id: str) -> dict[str, Any]:
    """A document with a new key."""
    nonce = os.urandom(NONCE_BYTES)
    return {"nonce": nonce, "wrapped": sdek.cipher.encrypt(nonce, SecretKey.random().raw(), _bound(cluster, id))}


def unwrapped(sdek: SecretKey, cluster: str, id: str, document: Any) -> bytes:
    """Raises StoreCorrupt for a document that is not the key of this volume."""
    try:
        return sdek.cipher.decrypt(document["nonce"], document["wrapped"], _bound(cluster, id))
    except (InvalidTag, KeyError, TypeError, ValueError):
        raise StoreCorrupt(f"the key of volume {id} cannot be opened") from None


def _bound(cluster: str, id: str) -> bytes:
    return f"piccolo volume key\0{cluster}\0{id}".encode()
