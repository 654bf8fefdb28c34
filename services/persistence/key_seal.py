"""The store's key on its way to another member: X25519, HKDF-SHA-256, AES-256-GCM, each key of it used once.

The ask and the giver's name are bound in: what was sealed for one session of a node opens in no other.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from piccolod.errors import Forbidden, Invalid
from piccolod.protocol.unlocking import PURPOSE, SealedKey, UnlockAsk
from services.persistence.secret import KEY_BYTES, SecretKey

ASK_BYTES: Final = 1024
_NONCE_BYTES: Final = 12


class Asking:
    """One ask, and the private half that opens its answer."""

    def __init__(self, cluster: str, node: str, sid: int, boot_id: str) -> None:
        self._private = X25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self.text = msgspec.msgpack.encode(UnlockAsk(cluster=cluster, node=node, sid=sid, boot_id=boot_id, public=public))

    def open(self, given: SealedKey) -> SecretKey:
        """Raises Forbidden for what was not sealed for this very ask."""
        try:
            cipher = _cipher(self._private, given.public, self.text, given.giver, given.public)
            return SecretKey(cipher.decrypt(given.nonce, given.sealed, self.text))
        except (InvalidTag, ValueError):
            raise Forbidden(f"what {given.giver[:60]} gave was not sealed for this ask") from None


def decode(text: bytes) -> UnlockAsk:
    """Raises Invalid."""
    try:
        if len(text) > ASK_BYTES:
            raise Invalid("this is no request for the key")
        return msgspec.msgpack.decode(text, type=UnlockAsk)
    except msgspec.MsgspecError as error:
        raise Invalid(f"this is no request for the key: {error}", hint="is the other node a newer piccolod?") from None


def seal(key: SecretKey, text: bytes, giver: str) -> SealedKey:
    """For the ask `text`. Raises Invalid for a public key that is none."""
    own = X25519PrivateKey.generate()
    public = own.public_key().public_bytes_raw()
    try:
        cipher = _cipher(own, decode(text).public, text, giver, public)
    except ValueError:
        raise Invalid("the request for the key brings no key of its own") from None
    nonce = os.urandom(_NONCE_BYTES)
    return SealedKey(giver=giver, public=public, nonce=nonce, sealed=cipher.encrypt(nonce, key.raw(), text))


def _cipher(own: X25519PrivateKey, other: bytes, text: bytes, giver: str, giver_public: bytes) -> AESGCM:
    """Raises ValueError for a point of low order, or bytes that are no key."""
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    info = msgspec.msgpack.encode((f"piccolo {PURPOSE}", text, giver, giver_public))
    return AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, None, info).derive(shared))
