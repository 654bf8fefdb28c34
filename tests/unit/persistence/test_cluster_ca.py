"""The cluster's certificate authority: what it is, and that it is one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from piccolod.errors import StoreCorrupt
from services.persistence import cluster_ca
from services.persistence.ledger import Write
from services.persistence.state import put

from .conftest import CLUSTER, Bench


def kept(bench: Bench, document: object) -> None:
    bench.write(Write([put(cluster_ca.COLLECTION, cluster_ca.ID, document)], {}, "persistence", "", 1))


def test_it_is_a_certificate_authority_of_this_cluster_whatever_the_clock_says() -> None:
    ca = cluster_ca.create(CLUSTER)
    certificate = ca.parsed
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == f"CN=piccolo cluster {CLUSTER}"
    assert certificate.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert certificate.not_valid_before_utc == datetime(2000, 1, 1, tzinfo=UTC)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert ca.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert ca.key.hex() not in repr(ca) and cluster_ca.create(CLUSTER).fingerprint != ca.fingerprint


def test_it_is_found_as_it_was_made_and_only_sealed_on_the_disk(bench: Bench) -> None:
    assert cluster_ca.find(bench.store.state) is None
    ca = cluster_ca.create(CLUSTER)
    kept(bench, cluster_ca.document(ca))
    assert cluster_ca.find(bench.reopen().state) == ca
    bench.store.keep_snapshot(bench.store.snapshot(1))
    content = b"".join(path.read_bytes() for path in bench.db.parent.iterdir())
    secret = ca.signer.private_numbers().private_value.to_bytes(32, "big")
    assert secret not in content and ca.key not in content and ca.certificate not in content


@pytest.mark.parametrize("field", ["key", "certificate"])
def test_a_document_that_is_no_authority_is_named(bench: Bench, field: str) -> None:
    other = cluster_ca.document(cluster_ca.create(CLUSTER))
    for wrong in ({field: other[field]}, {field: b"nonsense"}):
        kept(bench, {**cluster_ca.document(cluster_ca.create(CLUSTER)), **wrong})
        with pytest.raises(StoreCorrupt, match="pki/ca"):
            cluster_ca.find(bench.store.state)
