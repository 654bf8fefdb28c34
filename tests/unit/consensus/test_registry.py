"""Why something is led where it is, as one sentence."""

from __future__ import annotations

import pytest

from piccolod.leadership.roles import Role
from piccolod.protocol.consensus import Leadership
from services.consensus.registry import explanation


def leadership(node: str, since_ms: int) -> Leadership:
    return Leadership(
        resource="kernel", role=Role.FOLLOWER, node=node, address="", epoch=3, token=0, since_ms=since_ms, reason="expired",
        deadline_s=1.0, candidates=(),
    )  # fmt: skip


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("node", ["", "n1"])
def test_a_time_that_is_not_known_is_not_told(node: str, closing: bool) -> None:
    told = explanation(leadership(node, 0), closing)
    assert "epoch 3" in told and "1970" not in told and "since" not in told and " at " not in told
    assert "2026-11-23 21:30:46 UTC" in explanation(leadership(node, 1795469446000), closing)


def test_who_is_lost_leaves_no_record_of_when() -> None:
    assert explanation(leadership("", 0), closing=False) == "Nobody leads kernel: epoch 3 ended (expired)."
