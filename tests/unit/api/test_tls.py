from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.api.server import tls_context
from tests.unit.api.node import PASSWORD, running


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "cert.pem").write_bytes(cert.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_an_address_that_others_reach_speaks_tls_with_the_admins_files(files: tuple[Path, Path]) -> None:
    cert, key = files
    trust = ssl.create_default_context(cafile=str(cert))
    with running(api=f'cert = "{cert}"\nkey = "{key}"', host="0.0.0.0") as node:
        with httpx.Client(base_url=f"https://127.0.0.1:{node.port}", verify=trust, timeout=10) as client:
            answer = client.post("/api/v1/auth/login", json={"password": PASSWORD})
            assert answer.status_code == 200
            assert all("Secure" in each for each in answer.headers.get_list("set-cookie"))
            assert "strict-transport-security" in answer.headers
            assert client.get("/api/v1/auth/session").status_code == 200
        with pytest.raises(httpx.TransportError), httpx.Client(verify=False) as plain:
            plain.get(f"http://127.0.0.1:{node.port}/api/v1/health/live")


def test_loopback_speaks_no_tls(files: tuple[Path, Path]) -> None:
    cert, key = files
    with running(api=f'cert = "{cert}"\nkey = "{key}"') as node, node.tcp() as client:
        assert client.get("/health/live").status_code == 200


def test_a_certificate_that_cannot_be_read_is_named_and_the_unix_socket_serves() -> None:
    with running(api='cert = "/absent/cert.pem"\nkey = "/absent/key.pem"', host="0.0.0.0") as node:
        level, reason = node.module.healths[-1]
        assert level == "ERROR"
        assert "/absent/cert.pem" in reason
        with node.unix() as client:
            assert client.get("/health/live").status_code == 200


def test_old_tls_is_not_spoken(files: tuple[Path, Path]) -> None:
    assert tls_context(*map(str, files)).minimum_version == ssl.TLSVersion.TLSv1_2
