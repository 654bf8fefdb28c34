"""Safety rules that the simulator can switch off, to see that it finds what they prevent. Production has no such switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType, ModuleType
from typing import Any, Final

import msgspec

from piccolod.leadership import session, takeover, terms, transactions
from piccolod.leadership.events import Header
from piccolod.leadership.state import Leadership, Step
from piccolod.leadership.timing import wait_s


class Rules(msgspec.Struct, frozen=True):
    """All of them hold by default. `patches`: functions of the core that are replaced meanwhile."""

    says: str = "all rules hold"
    guards: tuple[str, ...] = ("supervisor", "leash.0", "leash.1", "apps")
    margin: float = 1.0  # of what M must be
    closes_page: bool = True
    hook_proves: bool = True
    restores: bool = False  # shows only when a backup of the store is restored
    patches: tuple[tuple[ModuleType | type, str, Any], ...] = ()

    def shown(self, closing: bool) -> bool:
        return closing and self.closes_page

    @contextmanager
    def applied(self) -> Iterator[None]:
        held = [(module, name, getattr(module, name)) for module, name, _ in self.patches]
        try:
            for module, name, function in self.patches:
                setattr(module, name, function)
            yield
        finally:
            for module, name, function in held:
                setattr(module, name, function)


ALL: Final = Rules()


def _believe(step: Step, header: Header | None, highest: int) -> bool:
    if header is not None:
        step.set(cluster_id=header.cluster_id, highest=max(step.state.highest, header.rev))
    return True


OFF: Final = MappingProxyType({
    "deadline-from-response": Rules(
        "deadlines count from the answer, not from the send",
        patches=((session, "counted_from", lambda pending, now: now),),
    ),
    "one-guard": Rules("one guard, which may freeze", guards=("supervisor",)),
    "margin-0.3": Rules("a third of the margin that the inequality asks for", margin=0.3),
    "session-before-proof": Rules(
        "a new session begins before the effects of the old one are proven stopped",
        patches=((session, "may_end", lambda state: True),),
    ),
    "hook-releases-first": Rules("the release hook ends the session before it has killed", hook_proves=False),
    "no-token-compare": Rules(
        "transactions do not compare the token", patches=((transactions, "same_token", lambda resource, token: ()),)
    ),
    "page-not-closed": Rules("a term that is being closed is open on the page", closes_page=False),
    "short-wait": Rules(
        "takers wait three quarters of W", patches=((takeover, "wait_s", lambda span_s, rate: 0.75 * wait_s(span_s, rate)),)
    ),
    "older-view": Rules(
        "what an older view shows opens again what was over",
        patches=(
            (Leadership, "settled", property(lambda state: state.viewed)),
            (terms, "was_over", lambda state, resource, token: False),
        ),
    ),
    "restore-unnoticed": Rules("any etcd that answers is believed", restores=True, patches=((session, "admit", _believe),)),
})  # fmt: skip
