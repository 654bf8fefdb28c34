"""Where the clients of an app go from this node, as its plan says."""

from __future__ import annotations

import msgspec
import pytest

from piccolod.protocol.router import RegisterAppRoute
from services.apps.plan import plan
from services.apps.situation import Leader, Situation
from services.apps.wanted_route import route_of

from .situations import READY, TERM, at, container, wanted

OTHER = Leader("n2", "10.77.1.2:7443", 4)
RUNS = msgspec.structs.replace(container(), address="10.89.0.2")


def route(**seen: object) -> RegisterAppRoute:
    situation: Situation = at(clustered=True, **seen)
    desired = wanted()
    return route_of(desired, desired.current, plan(desired, situation), situation, own="10.77.1.1", last_epoch=3)


def test_to_its_container_where_it_is_led_under_the_very_term() -> None:
    found = route(term=TERM, container=RUNS, health=READY)
    assert (found.mode, found.resource, found.token, found.epoch) == ("local", "app:a", TERM.token, TERM.epoch)
    assert [(each.address, each.port) for each in found.endpoints] == [("10.89.0.2", 80)]


def test_to_the_tunnel_of_its_leader_elsewhere_which_alone_has_a_term_and_a_container() -> None:
    found = route(leader=OTHER)
    assert (found.mode, found.leader, found.leader_addr, found.epoch) == ("tunnel", "n2", "10.77.1.2:7443", 4)
    assert (found.resource, found.token, found.endpoints) == ("", 0, ())


@pytest.mark.parametrize("seen", [{}, {"leader": Leader("n2", "", 2)}])
def test_they_wait_where_nobody_leads_it_or_is_not_found_yet_and_no_epoch_goes_back(seen: dict[str, object]) -> None:
    found = route(**seen)
    assert (found.mode, found.epoch, found.leader, found.endpoints) == ("hold", 3, "", ())
    assert [(each.name, each.public_port) for each in found.listeners] == [("web", 35000)]
