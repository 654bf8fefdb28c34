from __future__ import annotations

import resource

from services.router.limits import Admission, Limits


def test_every_allowed_flow_has_its_two_descriptors() -> None:
    limits = Limits.of_this_process()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits.total * 2 < soft
    assert limits.per_client <= limits.total // 2 + 1


def test_who_left_makes_room_and_leaves_no_trace() -> None:
    admission = Admission(Limits(total=3, per_client=2))
    assert [admission.enter("a"), admission.enter("a"), admission.enter("a")] == [True, True, False]
    assert [admission.enter("b"), admission.enter("c")] == [True, False]
    admission.leave("a")
    assert admission.enter("c")
    for client in ("a", "b", "c"):
        admission.leave(client)
    assert (admission.total, admission.refused) == (0, 2)
    assert admission._by_client == {}
