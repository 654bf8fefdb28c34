"""TLS between nodes: 1.3 alone, certificates of the cluster's authority on both sides. Standard library, as far as it reaches.

Names and addresses in certificates are not looked at: an address at home changes, and every node could claim one. After the
handshake the caller asks `peer` who is at the other end and compares that with whom it wants.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from piccolod.errors import Forbidden, Invalid, PiccoloError, Unauthenticated, Unavailable
from piccolod.pki import identity as identities
from piccolod.pki.identity import Identity, Role

# X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h, which the module ssl has no name for.
_NO_CHECK_TIME: Final = 0x200000
_VERSION: Final = 0xA0  # the context's element 0, explicit: the only one that may be absent before the key
_JOIN: Final = "a node gets its certificate by `piccoloctl cluster join`"

TlsObject = ssl.SSLObject | ssl.SSLSocket


def server_context(cert: Path, key: Path, ca: Path, require_client: bool, *, expired_too: bool = False) -> ssl.SSLContext:
    """Raises Unavailable, naming the files.

    Without `require_client` a client may come with none; one that it shows is checked all the same. `expired_too`: one that
    has ended is let through, for who asks `peer`, which refuses it, or `ended_peer`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    if expired_too:
        context.verify_flags |= _NO_CHECK_TIME
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(cert: Path, key: Path, ca: Path, *, expired_too: bool = False) -> ssl.SSLContext:
    """Raises Unavailable, naming the files. `expired_too`: for a node that was away so long that all have ended for it."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)
    if expired_too:
        context.verify_flags |= _NO_CHECK_TIME
    return context


def pinned_context(fingerprint: str) -> ssl.SSLContext:
    """For a node that has no certificate yet, and a token that names the authority by the SHA-256 of its certificate.

    The handshake itself fails (ssl.SSLCertVerificationError) unless the server is a member that this authority signed, and
    proves to have its key. Clocks are not asked: the joiner's may stand anywhere.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # in the place of which stands `_check_pinned`

    def check(tls: TlsObject) -> None:
        _check_pinned(tls, fingerprint)

    context.sslsocket_class = _checking(ssl.SSLSocket, check)
    context.sslobject_class = _checking(ssl.SSLObject, check)
    return context


def peer(tls: TlsObject | None) -> Identity:
    """Who is at the other end. Raises Unauthenticated when it showed no certificate, or one that has ended."""
    identity, ends_s = ended_peer(tls)
    if time.time() >= ends_s:
        raise Unauthenticated(
            f"the certificate of {identity.node} has ended",
            hint="it is renewed by itself as long as the node is listed; see that the clocks are right",
        )
    return identity


def ended_peer(tls: TlsObject | None) -> tuple[Identity, float]:
    """Who is at the other end, and when its certificate ends or has ended, in seconds of the wall clock."""
    shown: dict[str, Any] | None = tls.getpeercert() if tls is not None else None
    if not shown:
        raise Unauthenticated("this is for members of the cluster, and no certificate was shown", hint=_JOIN)
    try:
        identity = identities.find([value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"])
    except Invalid as error:
        raise Forbidden(error.detail, hint=_JOIN) from None
    return identity, float(ssl.cert_time_to_seconds(shown["notAfter"]))


def peer_key(tls: TlsObject) -> str:
    """SHA-256 of the public key that the peer has proven to have, in hex: as `authority.Signed.key`.

    Without `cryptography`, which costs more memory and time than all else that a router needs of TLS.
    """
    shown = tls.getpeercert(binary_form=True)
    if shown is None:
        raise Unauthenticated("this is for members of the cluster, and no certificate was shown", hint=_JOIN)
    return hashlib.sha256(_public_key(shown)).hexdigest()


def _public_key(certificate: bytes) -> bytes:
    """Its SubjectPublicKeyInfo (RFC 5280, 4.1), DER. The handshake has read and proven the certificate before."""
    _, at, _ = _element(certificate, 0)
    _, at, _ = _element(certificate, at)
    kind, _, end = _element(certificate, at)
    if kind == _VERSION:
        at = end
    for _ in ("serial number", "signature", "issuer", "validity", "subject"):
        _, _, at = _element(certificate, at)
    return certificate[at : _element(certificate, at)[2]]


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """(its kind, where its content begins, where it ends)."""
    kind, length = der[at], der[at + 1]
    begin = at + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[at + 2 : begin], "big")
    return kind, begin, begin + length


def _context(protocol: Any, cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(cert, key)
        context.load_verify_locations(ca)
    except OSError as error:  # ssl.SSLError is one
        raise Unavailable(
            f"no TLS between nodes with {cert}, {key} and {ca}: {error.strerror or error}", hint="see who may read them"
        ) from error
    return context


def _checking(kind: type[Any], check: Callable[[Any], None]) -> type[Any]:
    """`ssl` makes its objects of the class that a context names: this one ends a handshake only when `check` is content."""

    class Checking(kind):
        def do_handshake(self, *args: Any, **more: Any) -> None:
            super().do_handshake(*args, **more)
            check(self)

    return Checking


def _check_pinned(tls: TlsObject, fingerprint: str) -> None:
    from piccolod.pki import authority

    chain = _chain(tls)
    try:
        pinned = [each for each in chain if authority.fingerprint_of(each) == fingerprint]
        if not pinned:
            raise ssl.SSLCertVerificationError(1, "it is not of the cluster that the token names")
        if not authority.signed_by(chain[0], pinned[0]) or authority.read(chain[0]).identity.role is not Role.MEMBER:
            raise ssl.SSLCertVerificationError(1, "it is no member of the cluster that the token names")
    except PiccoloError as error:
        raise ssl.SSLCertVerificationError(1, error.detail) from None


def _chain(tls: TlsObject) -> list[bytes]:
    """The certificates that the server sent, its own first, DER. Public from Python 3.13 on; `ssl` has had it since 3.10."""
    public = getattr(tls, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    inner: Any = tls._sslobj  # type: ignore[union-attr]
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in inner.get_unverified_chain()]
