"""The private key of a node, as its file has it."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from piccolod.errors import Invalid


def load(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises Invalid for what is none, and for a key of another kind."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Invalid(f"this is not a private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid("this is not a key of an elliptic curve")
    return key
