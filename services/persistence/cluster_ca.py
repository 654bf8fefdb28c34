"""The certificate authority of the cluster: one key pair and its own certificate, from the first setup on.

A document like any other, so sealed wherever it rests or travels; no module but persistence may read its collection. On a
node alone it signs nothing: it is there so that the log of one node stays valid when others join it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from piccolod.errors import StoreCorrupt
from services.persistence.state import State

COLLECTION: Final = "pki"
ID: Final = "ca"
# Of no clock: one without a battery stands in 1970 when the store is set up, or years ahead. Nobody renews an authority
# at home; the end is the one that RFC 5280 (4.1.2.5) keeps for "no well-defined expiration date".
_NOT_BEFORE: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NOT_AFTER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class ClusterCa(msgspec.Struct, frozen=True):
    """`key` is its private key as PKCS #8, `certificate` its own certificate, both DER."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return f"ClusterCa({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hex."""
        return self.parsed.fingerprint(hashes.SHA256()).hex()

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.certificate)

    @property
    def signer(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_der_private_key(self.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not a key of an elliptic curve")
        return key


def create(cluster: str) -> ClusterCa:
    """P-256: what every TLS library in use can check."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"piccolo cluster {cluster}")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ClusterCa(private, certificate.public_bytes(serialization.Encoding.DER))


def find(state: State) -> ClusterCa | None:
    """The authority of this store; None before it is made. Raises StoreCorrupt for a document that is none."""
    found = state.get(COLLECTION, ID)
    if found is None:
        return None
    try:
        ca = msgspec.msgpack.decode(found.body, type=ClusterCa)
        if ca.signer.public_key() == ca.parsed.public_key():
            return ca
    except ValueError:
        pass
    raise StoreCorrupt(f"{COLLECTION}/{ID} is no certificate authority") from None


def document(ca: ClusterCa) -> dict[str, Any]:
    return msgspec.structs.asdict(ca)
