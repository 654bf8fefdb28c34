"""Who gets a vote and when, and who is let in. Pure."""

from __future__ import annotations

import pytest

from piccolod.errors import Busy, Exists, Invalid, OutcomeUnknown
from piccolod.protocol.cluster import KnownMember
from services.consensus.etcd.members import Member
from services.consensus.joining import door
from services.consensus.joining.members import check_free, due, heir_of, patiently, peer_with, warnings


def peer(name: str, learner: bool = False, number: int = 0) -> Member:
    number = number or int(name[1:])
    return Member(number, name, (f"https://10.0.0.{number}:2380",), (), learner)


def node(number: int, role: str = "member") -> KnownMember:
    address = f"10.0.0.{number}"
    return KnownMember(address=address, client_url=f"https://{address}:2379", rpc=f"{address}:7444", role=role)


def test_the_second_node_waits_for_the_third_and_every_later_one_gets_its_vote() -> None:
    one, two, three, four = peer("n1"), peer("n2"), peer("n3"), peer("n4", learner=True)
    assert due([one, peer("n2", learner=True)]) is None, "its loss must not stop the first"
    third = peer("n3", learner=True)
    assert due([one, two, third]) == third
    assert due([one, two, three, four]) == four
    assert due([one, two, peer("", learner=True, number=3)]) is None, "it has not started"
    assert due([one, two, three]) is None


def test_before_the_last_voter_goes_a_learner_that_has_started_becomes_one() -> None:
    last, two = peer("n1"), peer("n2", learner=True)
    unstarted = peer("", learner=True, number=3)
    assert heir_of(last, [last, unstarted, two]) == two
    assert heir_of(last, [last, unstarted]) is None
    assert heir_of(two, [last, two]) is None
    assert heir_of(last, [last, peer("n3"), two]) is None


def test_each_number_of_votes_that_bears_less_than_it_looks_is_told() -> None:
    voters = [peer(f"n{number}") for number in range(1, 6)]
    assert warnings(voters[:1]) == []
    assert "n2 has no vote" in warnings([voters[0], peer("n2", learner=True)])[0]
    assert "loss of either" in warnings(voters[:2])[0]
    assert warnings(voters[:3]) == []
    assert "four votes" in warnings(voters[:4])[0]
    assert warnings(voters) == []


def test_a_name_and_an_address_belong_to_one_node() -> None:
    others = {"n1": node(1), "n2": node(2)}
    check_free("n3", node(3), others)
    check_free("n2", node(2), others)  # it asks again
    with pytest.raises(Exists, match="a node n2 is in this cluster already") as refusal:
        check_free("n2", node(3), others)
    assert "nodes remove n2" in refusal.value.hint
    with pytest.raises(Exists, match=r"n1 has the address 10\.0\.0\.1"):
        check_free("n3", node(1), others)


def test_an_address_belongs_to_one_node_also_where_no_node_has_an_etcd() -> None:
    def without(number: int) -> KnownMember:
        return KnownMember(address=f"10.0.0.{number}", client_url="", rpc=f"10.0.0.{number}:7444")

    others = {"n1": without(1), "n2": without(2)}
    check_free("n3", without(3), others)
    check_free("n2", without(2), others)
    with pytest.raises(Exists, match=r"n1 has the address 10\.0\.0\.1"):
        check_free("n3", without(1), others)


def test_a_member_that_never_started_is_known_by_its_address() -> None:
    unstarted = peer("", learner=True, number=3)
    known = {"n1", "n3", "n4"}
    assert peer_with("n3", node(3), [peer("n1"), unstarted], known) == unstarted
    assert peer_with("n4", node(4), [peer("n1"), unstarted], known) is None


def test_a_member_at_the_same_address_that_has_the_name_of_another_node_is_not_taken_for_this_one() -> None:
    first, unstarted = peer("n1"), peer("", learner=True, number=1)
    known = {"n1", "n2"}
    assert peer_with("n2", node(1), [first], known) is None, "one machine may have the members of two nodes, by other ports"
    assert peer_with("n2", node(1), [first, unstarted], known) == unstarted
    assert peer_with("n2", node(1), [peer("n9", number=1)], known) == peer("n9", number=1), "it was called otherwise before"


def test_patience_ends_with_the_reason() -> None:
    import asyncio

    async def main() -> None:
        answers = [Busy("etcd: unhealthy cluster"), OutcomeUnknown("who knows"), None]

        async def act() -> None:
            if (answer := answers.pop(0)) is not None:
                raise answer

        await patiently(act, "etcd does not take n2 yet", 5)
        assert not answers

        async def never() -> None:
            raise Busy("etcd: unhealthy cluster")

        with pytest.raises(Busy, match="does not take n2 yet: etcd: unhealthy cluster"):
            await patiently(never, "etcd does not take n2 yet", 0.3)

        async def refused() -> None:
            raise Exists("for certain")

        with pytest.raises(Exists):
            await patiently(refused, "", 60)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("10.0.0.1", ("10.0.0.1", 7444)),
        ("10.0.0.1:9000", ("10.0.0.1", 9000)),
        (" box.local ", ("box.local", 7444)),
        ("fd00::1", ("fd00::1", 7444)),
        ("[fd00::1]", ("fd00::1", 7444)),
        ("[fd00::1]:9000", ("fd00::1", 9000)),
    ],
)
def test_an_address_is_taken_as_people_write_it(text: str, place: tuple[str, int]) -> None:
    assert door.place(text, 7444) == place


@pytest.mark.parametrize("text", ["", ":7444", "https://10.0.0.1", "10.0.0.1:x", "10.0.0.1:0", "10.0.0.1:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        door.place(text, 7444)
