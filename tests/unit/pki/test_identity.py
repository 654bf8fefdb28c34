from __future__ import annotations

import pytest

from piccolod.errors import Forbidden, Invalid
from piccolod.pki import identity
from piccolod.pki.identity import Identity, Role


@pytest.mark.parametrize("role", list(Role))
def test_an_identity_is_read_back_from_its_uri(role: Role) -> None:
    node = Identity("c1", "pi-4", role)
    assert node.uri == f"piccolo://c1/pi-4?role={role.value}"
    assert identity.parse(node.uri) == node
    assert identity.find(["https://x", node.uri]) == node


@pytest.mark.parametrize(
    "uri",
    [
        "", "piccolo://c1/n1", "piccolo://c1/n1?role=", "piccolo://c1/n1?role=king", "piccolo:///n1?role=member",
        "piccolo://c1/?role=member", "piccolo://c1/N1?role=member", "piccolo://c1/n1?role=member&role=witness",
        "piccolo://c1/n1?role=member\n", "piccolo://c1/n1/n2?role=member", "piccolo://c 1/n1?role=member",
        "https://c1/n1?role=member", "piccolo://c1/n1?role=member#x",
    ],
)  # fmt: skip
def test_what_is_no_identity_is_refused(uri: str) -> None:
    with pytest.raises(Invalid):
        identity.parse(uri)


def test_a_certificate_speaks_for_one_node() -> None:
    with pytest.raises(Invalid, match="of no node"):
        identity.find(["https://x"])
    with pytest.raises(Invalid, match="of several nodes"):
        identity.find(["piccolo://c1/n1?role=member", "piccolo://c1/n2?role=member"])


@pytest.mark.parametrize(("cluster", "node"), [("c1", "a/b"), ("c1", "x?role=member"), ("c1", ""), ("", "n1"), ("c/1", "n1")])
def test_names_that_would_say_something_else_in_a_uri_cannot_be_made(cluster: str, node: str) -> None:
    with pytest.raises(Invalid):
        Identity(cluster, node)


def test_who_is_of_another_cluster_or_role_is_not_admitted() -> None:
    witness = Identity("c1", "n1", Role.WITNESS)
    assert witness.admitted("c1", Role.MEMBER, Role.WITNESS) is witness
    with pytest.raises(Forbidden, match="n1 is a witness"):
        witness.admitted("c1", Role.MEMBER)
    with pytest.raises(Forbidden, match="another cluster"):
        witness.admitted("c2", Role.WITNESS)
