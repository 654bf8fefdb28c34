from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from piccolod.errors import Invalid
from piccolod.pki import authority as pki
from piccolod.pki.authority import FLOOR, LIFE, Authority, make_key, make_request
from piccolod.pki.identity import Identity, Role

from .conftest import ADDRESS, CLUSTER

N1 = Identity(CLUSTER, "n1")
NOW_S = 1_800_000_000.0  # in 2027


def signed(authority: Authority, *, now_s: float = NOW_S, identity: Identity = N1, address: str = ADDRESS) -> str:
    return authority.sign(make_request(make_key()), identity, address, now_s)


def test_a_certificate_is_of_the_node_for_90_days_and_both_sides_of_a_connection(authority: Authority) -> None:
    key = make_key()
    certificate = authority.sign(make_request(key), N1, ADDRESS, NOW_S)
    found = pki.read(certificate)
    assert (found.identity, found.ends_s) == (N1, NOW_S + 90 * 86400)
    assert found.renew_at() == NOW_S + 60 * 86400
    assert pki.signed_by(certificate, authority.pem) and pki.belong_together(certificate, key)
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [ADDRESS, "127.0.0.1"]
    basic = parsed.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and not basic.value.ca
    assert isinstance(parsed.public_key(), ec.EllipticCurvePublicKey)
    assert parsed.public_key().curve.name == "secp256r1"


def test_a_name_in_the_place_of_an_address_is_a_name_in_the_certificate(authority: Authority) -> None:
    parsed = x509.load_pem_x509_certificate(signed(authority, address="pi.local").encode())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pi.local"]
    with pytest.raises(Invalid):
        signed(authority, address="")


@pytest.mark.parametrize("now_s", [0.0, NOW_S, 4_000_000_000.0, 1e12])
def test_a_certificate_is_valid_for_a_clock_that_is_years_behind_the_signers(authority: Authority, now_s: float) -> None:
    parsed = x509.load_pem_x509_certificate(signed(authority, now_s=now_s).encode())
    assert parsed.not_valid_before_utc == datetime(2000, 1, 1, tzinfo=UTC)
    assert parsed.not_valid_after_utc > datetime.fromtimestamp(min(now_s, 2e11), UTC)


def test_a_signer_in_1970_makes_no_certificate_that_ended_before_this_version_was_made(authority: Authority) -> None:
    assert pki.read(signed(authority, now_s=0.0)).ends_s == (FLOOR + LIFE).timestamp()
    assert FLOOR.timestamp() < time.time()


def test_a_renewal_keeps_the_key_by_which_the_node_is_known(authority: Authority) -> None:
    request = make_request(make_key())
    first, second = (pki.read(authority.sign(request, N1, ADDRESS, NOW_S + day * 86400)) for day in (0, 60))
    assert first.key == second.key == pki.key_of_request(request)
    assert second.ends_s > first.ends_s
    assert pki.read(signed(authority)).key != first.key


def test_what_a_request_claims_beside_its_key_is_not_signed(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    claims = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("piccolo://other/king?role=member")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(claims, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    certificate = authority.sign(pem, Identity(CLUSTER, "n2", Role.WITNESS), ADDRESS, NOW_S)
    assert pki.read(certificate).identity == Identity(CLUSTER, "n2", Role.WITNESS)
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    assert not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_requests_that_prove_nothing_are_refused(authority: Authority) -> None:
    good = make_request(make_key())
    body = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    body[-1] ^= 1  # in the signature
    forged = x509.load_der_x509_csr(bytes(body)).public_bytes(serialization.Encoding.PEM).decode()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    foreign = [
        builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
        builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    ]
    others = [each.public_bytes(serialization.Encoding.PEM).decode() for each in foreign]
    for request in ("", "nonsense", "é", good * 40, forged, *others):
        with pytest.raises(Invalid, match="certificate request"):
            authority.sign(request, N1, ADDRESS, NOW_S)


def test_another_authority_did_not_sign_it_and_a_node_is_no_authority(authority: Authority) -> None:
    certificate = signed(authority)
    assert not pki.signed_by(certificate, Authority.create(CLUSTER).pem)
    assert not pki.signed_by(certificate, certificate)
    assert not pki.belong_together(certificate, make_key())
    assert pki.fingerprint_of(authority.pem) == pki.fingerprint_of(authority.certificate) == authority.fingerprint


def test_an_authority_shows_its_key_to_nobody(authority: Authority) -> None:
    assert authority.key.hex() not in repr(authority) and "PRIVATE" not in authority.pem
    with pytest.raises(Invalid, match="of no node"):
        pki.read(authority.pem)
