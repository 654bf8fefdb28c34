"""Only a certificate that is this very node's takes the place of its former one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from piccolod.cluster_mode import Mode
from piccolod.errors import Forbidden
from piccolod.paths import Paths
from piccolod.pki.authority import Authority, make_key, make_request
from piccolod.pki.identity import Identity, Role
from services.consensus.joining import renewal
from services.consensus.joining.folder import Folder

CLUSTER = "c-1"
OURS = Authority.create(CLUSTER)
MODE = Mode(cluster=CLUSTER, node="n1", since_ms=1)
KEY = make_key()


def signed(by: Authority = OURS, key: bytes = KEY, who: Identity | None = None) -> str:
    return by.sign(make_request(key), who or Identity(CLUSTER, "n1"), "10.0.0.1", time.time())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "state").mkdir()
    made = Folder(Paths(state=tmp_path / "state", run=tmp_path / "run"))
    made.make()
    made.keep_certificate(signed(), KEY, OURS.pem)
    return made


def test_a_renewed_certificate_takes_the_place_of_the_former_one(folder: Folder) -> None:
    renewed = signed()
    assert folder.certificate.read_text() != renewed
    renewal.keep(folder, renewed, MODE)
    assert folder.certificate.read_text() == renewed
    assert folder.key.read_bytes() == KEY


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (signed(key=make_key()), "another key"),
        (signed(by=Authority.create(CLUSTER)), "authority"),
        (signed(who=Identity(CLUSTER, "n2")), "n2"),
        (signed(who=Identity("c-2", "n1")), "c-2"),
        (signed(who=Identity(CLUSTER, "n1", Role.WITNESS)), "witness"),
    ],
    ids=["key", "authority", "node", "cluster", "role"],
)
def test_another_one_is_refused_and_the_former_one_stays(folder: Folder, certificate: str, words: str) -> None:
    before = folder.certificate.read_text()
    with pytest.raises(Forbidden, match=words):
        renewal.keep(folder, certificate, MODE)
    assert folder.certificate.read_text() == before
