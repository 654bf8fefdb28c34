from __future__ import annotations

import msgspec

from services.router.route import Claim, Flows, Leader, Listener, Mode, Route, Target, claims, in_force, supersede

WEB = Listener(name="web", public_port=35000)
SSH = Listener(name="ssh", public_port=35001)
AT = Target(listener="web", address="10.88.0.2", port=80)
LOCAL = Route(app="notes", mode=Mode.LOCAL, epoch=4, resource="app:notes", token=9, listeners=(WEB,), targets=(AT,))
N2 = Leader(node="n2", address="10.77.0.2", port=7443)
TUNNEL = Route(app="notes", mode=Mode.TUNNEL, epoch=4, listeners=(WEB,), leader=N2)


def changed(**fields: object) -> Route:
    return Route(**{name: getattr(LOCAL, name) for name in LOCAL.__struct_fields__} | fields)  # type: ignore[arg-type]


def test_the_first_route_is_taken_whatever_its_epoch() -> None:
    assert supersede(None, LOCAL).accepted


def test_a_lower_epoch_is_ignored_and_the_answer_is_the_current_route() -> None:
    step = supersede(LOCAL, changed(epoch=3, mode=Mode.CLOSED))
    assert not step.accepted
    assert step.route is LOCAL
    assert step.flows == {}


def test_a_new_epoch_cuts_the_flows_of_the_dead_one_whatever_the_mode() -> None:
    for mode in Mode:
        assert supersede(LOCAL, changed(epoch=5, mode=mode)).flows == {"web": Flows.CUT}


def test_leaving_local_in_the_same_epoch_lets_flows_end_by_themselves() -> None:
    assert supersede(LOCAL, changed(mode=Mode.HOLD)).flows == {"web": Flows.DRAIN}
    assert supersede(LOCAL, changed(mode=Mode.CLOSED)).flows == {"web": Flows.DRAIN}


def test_a_tunnel_keeps_its_flows_until_its_leader_is_another_one() -> None:
    assert supersede(TUNNEL, TUNNEL).flows == {"web": Flows.KEEP}
    elsewhere = msgspec.structs.replace(TUNNEL, leader=msgspec.structs.replace(N2, address="10.77.0.9"))
    assert supersede(TUNNEL, elsewhere).flows == {"web": Flows.CUT}
    assert supersede(TUNNEL, msgspec.structs.replace(TUNNEL, epoch=5)).flows == {"web": Flows.CUT}
    assert supersede(LOCAL, TUNNEL).flows == {"web": Flows.CUT}


def test_a_move_that_is_taken_back_keeps_what_drains() -> None:
    holding = msgspec.structs.replace(TUNNEL, mode=Mode.HOLD, leader=None)
    assert supersede(TUNNEL, holding).flows == {"web": Flows.DRAIN}
    assert supersede(holding, TUNNEL).flows == {"web": Flows.KEEP}


def test_the_same_route_again_touches_no_flow() -> None:
    assert supersede(LOCAL, LOCAL).flows == {"web": Flows.KEEP}


def test_a_container_with_another_address_cuts_the_flows_of_the_old_one() -> None:
    moved = changed(targets=(Target(listener="web", address="10.88.0.3", port=80),))
    assert supersede(LOCAL, moved).flows == {"web": Flows.CUT}


def test_a_listener_that_goes_or_changes_its_port_is_cut_and_its_siblings_are_not() -> None:
    both = changed(listeners=(WEB, SSH))
    assert supersede(both, LOCAL).flows == {"web": Flows.KEEP, "ssh": Flows.CUT}
    renumbered = changed(listeners=(WEB, Listener(name="ssh", public_port=35009)))
    assert supersede(both, renumbered).flows == {"web": Flows.KEEP, "ssh": Flows.CUT}


def test_a_shut_gate_makes_local_hold_and_nothing_else() -> None:
    assert in_force(LOCAL, WEB, "the deadline has passed") == (Mode.HOLD, "the deadline has passed")
    assert in_force(LOCAL, WEB, "") == (Mode.LOCAL, "")
    assert in_force(changed(mode=Mode.CLOSED), WEB, "the deadline has passed") == (Mode.CLOSED, "")
    assert in_force(changed(mode=Mode.HOLD), WEB, "") == (Mode.HOLD, "")


def test_a_tunnel_is_in_force_whatever_the_own_gate_says() -> None:
    assert in_force(TUNNEL, WEB, "") == (Mode.TUNNEL, "")


def test_local_without_an_address_holds_and_says_why() -> None:
    mode, reason = in_force(changed(targets=()), WEB, "")
    assert mode is Mode.HOLD
    assert "no address" in reason


def test_a_closed_route_claims_no_port() -> None:
    assert claims([changed(mode=Mode.CLOSED)]) == ({}, {})
    assert claims([changed(mode=Mode.HOLD)])[0] == {35000: Claim("notes", WEB)}


def test_two_apps_with_one_port_are_told_apart_by_name() -> None:
    held, refused = claims([changed(app="zoo"), LOCAL])
    assert held[35000].app == "notes"
    assert refused == {("zoo", "web"): "port 35000 belongs to app notes"}
