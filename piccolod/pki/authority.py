"""The certificate authority of a cluster: makes itself, signs what nodes ask for, and says what a certificate is.

Clocks at home stand wrong: 1970 after a power cut without a battery, hours behind, years ahead. So

- nothing is ever "not valid yet": every certificate begins in 2000, like the authority. It cannot be used before it was
  signed anyway, and a signer whose clock is ahead would otherwise shut out all whose clock is right.
- the end is counted from the signer's clock, but at the earliest from `FLOOR`, which is certainly past.
- a certificate that has ended is still good for one thing: asking for the next one (`channel.server_context`, `expired_too`).
  Who may have it is decided by the list of nodes in the control store and the node's key, not by a clock.

A renewal keeps the node's key, so that one rename replaces the certificate; who needs another key joins again.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from piccolod.errors import Invalid
from piccolod.pki import identity as identities
from piccolod.pki import private_key
from piccolod.pki.identity import Identity

BEGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
# RFC 5280 (4.1.2.5) keeps this end for "no well-defined expiration date". Nobody renews an authority at home.
NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
FLOOR: Final = datetime(2026, 11, 1, tzinfo=UTC)  # older than this very line
LIFE: Final = timedelta(days=90)
RENEW_AFTER: Final = 2 / 3
_CSR_BYTES: Final = 8192
_PEM: Final = serialization.Encoding.PEM


class Authority(msgspec.Struct, frozen=True):
    """`key` is its private key as PKCS #8, `certificate` its own certificate, both DER."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return f"Authority({self.fingerprint})"

    @staticmethod
    def create(cluster: str) -> Authority:
        """P-256: what every TLS library in use can check."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"piccolo cluster {cluster}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(BEGIN)
            .not_valid_after(NEVER)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Authority(private, certificate.public_bytes(serialization.Encoding.DER))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, in hex."""
        return self.parsed.fingerprint(hashes.SHA256()).hex()

    @property
    def pem(self) -> str:
        """Its certificate, which is no secret."""
        return self.parsed.public_bytes(_PEM).decode()

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.certificate)

    @property
    def signer(self) -> ec.EllipticCurvePrivateKey:
        """Raises ValueError for a key of another kind."""
        key = serialization.load_der_private_key(self.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not a key of an elliptic curve")
        return key

    def sign(self, csr_pem: str, identity: Identity, address: str, now_s: float) -> str:
        """A node's certificate as PEM: for the key of the request and for nothing else that it says. Raises Invalid.

        `address`: an IP address or a name, under which TLS clients that look at names (etcd's) may find it. `now_s`: the
        wall clock.
        """
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri), *_names(address)]
        ours = self.parsed
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.node)]))
            .issuer_name(ours.subject)
            .public_key(_key_of_request(csr_pem))
            .serial_number(x509.random_serial_number())
            .not_valid_before(BEGIN)
            .not_valid_after(_end(now_s))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours.public_key()), critical=False)  # type: ignore[arg-type]
            .sign(self.signer, hashes.SHA256())
        )
        return certificate.public_bytes(_PEM).decode()


def make_key() -> bytes:
    """A new private key of a node, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def make_request(key_pem: bytes) -> str:
    """What a node sends to be signed: its public key, and the proof that it has the other half. Raises Invalid."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(private_key.load(key_pem), hashes.SHA256()).public_bytes(_PEM).decode()


class Signed(msgspec.Struct, frozen=True):
    """What a certificate says. `key`: SHA-256 of the public key in hex, the same over renewals. Seconds of the wall clock."""

    identity: Identity
    key: str
    ends_s: float

    def renew_at(self) -> float:
        """When two thirds of its life are over."""
        return self.ends_s - LIFE.total_seconds() * (1 - RENEW_AFTER)


def read(certificate: str | bytes) -> Signed:
    """Of a node's certificate, PEM text or DER bytes. Checks no signature. Raises Invalid."""
    parsed = _parsed(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise Invalid("a certificate of no node") from None
    identity = identities.find(names.get_values_for_type(x509.UniformResourceIdentifier))
    return Signed(identity, _digest(parsed.public_key()), parsed.not_valid_after_utc.timestamp())


def key_of_request(csr_pem: str) -> str:
    """SHA-256 of the public key that a request is for, in hex: what a node is known by over renewals. Raises Invalid."""
    return _digest(_key_of_request(csr_pem))


def fingerprint_of(certificate: str | bytes) -> str:
    """SHA-256 of a whole certificate in hex. Raises Invalid."""
    return _parsed(certificate).fingerprint(hashes.SHA256()).hex()


def signed_by(certificate: str | bytes, ca: str | bytes) -> bool:
    """Whether `ca` is an authority and signed this very certificate; clocks are not asked. Raises Invalid for garbage."""
    leaf, authority = _parsed(certificate), _parsed(ca)
    try:
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        leaf.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError):
        return False
    return basic.value.ca


def belong_together(certificate: str, key_pem: bytes) -> bool:
    """Whether a private key is that of a certificate. Raises Invalid for garbage."""
    return read(certificate).key == key_of_request(make_request(key_pem))


def _parsed(certificate: str | bytes) -> x509.Certificate:
    try:
        if isinstance(certificate, str):
            return x509.load_pem_x509_certificate(certificate.encode())
        return x509.load_der_x509_certificate(certificate)
    except ValueError:
        raise Invalid("this is not a certificate") from None


def _key_of_request(csr_pem: str) -> ec.EllipticCurvePublicKey:
    hint = "send a PKCS #10 request as PEM, for a key on the curve P-256"
    if len(csr_pem) > _CSR_BYTES:
        raise Invalid("the certificate request is too large", hint=hint)
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        raise Invalid("this is not a certificate request", hint=hint) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("the certificate request is for a key of another kind", hint=hint)
    if not proven:
        raise Invalid("the certificate request was not signed by the key that it is for", hint=hint)
    return key


def _digest(key: object) -> str:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Invalid("a certificate for a key of another kind")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize().hex()


def _end(now_s: float) -> datetime:
    """A clock years ahead is cut off where the authority ends."""
    latest = (NEVER - LIFE).timestamp()
    return (datetime.fromtimestamp(min(max(now_s, FLOOR.timestamp()), latest), UTC) + LIFE).replace(microsecond=0)


def _names(address: str) -> list[x509.GeneralName]:
    loopback = ipaddress.ip_address("127.0.0.1")
    try:
        own = ipaddress.ip_address(address)
    except ValueError:
        if not address.isascii() or not address or len(address) > 253:
            raise Invalid(f"{address[:80]!r} is neither an address nor a name") from None
        return [x509.DNSName(address), x509.IPAddress(loopback)]
    return [x509.IPAddress(each) for each in dict.fromkeys((own, loopback))]


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip
