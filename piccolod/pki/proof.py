"""A node says something in its own name: signed by the key of its certificate, ECDSA on P-256 with SHA-256."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from piccolod.errors import Invalid
from piccolod.pki import private_key

_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())


def sign(key_pem: bytes, purpose: str, message: bytes) -> tuple[bytes, bytes]:
    """(The public key, DER; the signature). `purpose`: so that it means nothing anywhere else. Raises Invalid."""
    key = private_key.load(key_pem)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public, key.sign(_framed(purpose, message), _ALGORITHM)


def signer(public: bytes, purpose: str, message: bytes, signature: bytes) -> str:
    """By whom: SHA-256 of the public key in hex, as `authority.Signed.key`. Raises Invalid when it was not signed by it."""
    try:
        key = serialization.load_der_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Invalid("this is not a key of an elliptic curve")
        key.verify(signature, _framed(purpose, message), _ALGORITHM)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        raise Invalid("this was not signed by the key that it comes with") from None
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _framed(purpose: str, message: bytes) -> bytes:
    return f"piccolo {purpose}\0".encode() + message
