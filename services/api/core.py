"""What the routes stand on: the other modules, the supervisor, what was heard of them, and the rev."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from piccolod import clock, control
from piccolod.cluster_mode import Mode
from piccolod.config import Config
from piccolod.errors import DeadlineExceeded, LeaderHint, NoLeader, NotLeader, PeerRestarted, PiccoloError
from piccolod.kernel import MODULES, ROUTERS
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader
from piccolod.module import Module
from piccolod.protocol.base import Level, Reply, Request
from piccolod.protocol.events import (
    ControlStoreCommit,
    HealthChanged,
    LeadershipRoleChanged,
    LockStateChanged,
    ModuleStateChanged,
)
from piccolod.protocol.persistence import GetRevision
from services.api import origin, readiness
from services.api.actor import ROOT, Actor, root_of
from services.api.credentials import Credentials
from services.api.documents import ModuleView
from services.api.limits import Seats
from services.api.readiness import ComponentHealth, Readiness
from services.api.setup_code import SetupCode

if TYPE_CHECKING:  # imported on members alone
    from services.api.rpc.images import Images
    from services.api.rpc.relay import Relay
    from services.api.rpc.standings import Standings

_AT_THE_LEADER: Final = "send it to the leader"
_MIN_REV_WAIT_S: Final = 5.0
_REV_POLL_S: Final = 0.25
_TRIES: Final = 3
_LOOK_S: Final = 0.5  # so often at most, however often load balancers ask
_LOOK_WAIT_S: Final = 1.0
_STREAMS: Final = 64
_UPLOADS: Final = 2


class Core:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.config: Config = module.config
        self.log = module.log
        self.proxies = origin.proxies(module.config.api.trusted_proxies)
        name = module.config.node.name
        self.names = frozenset({name, f"{name}.local", "piccolo.local"})
        self.gate = Gate(PageReader(module.paths.page))
        self.credentials = Credentials(self)
        self.setup_code = SetupCode(module.config.security.setup_from == "code")
        self.streams = Seats(_STREAMS, "streams")
        self.uploads = Seats(_UPLOADS, "uploads")
        self.uploads_folder = module.paths.uploads
        self.routers = ROUTERS if module.config.module("router").enabled else ()
        self.closing = asyncio.Event()
        self.mode: Mode | None = None  # of a member of a cluster, from the start on
        self.relay: Relay | None = None  # where writes for the leader go, on a member
        self.standings: Standings | None = None  # what the other members have, on a member
        self.images: Images | None = None  # what members hand to each other
        enabled = [spec.name for spec in MODULES if module.config.module(spec.name).enabled and spec.name != module.name]
        self.seen = readiness.expect(enabled, clock.now())
        self.kernel_role = LeadershipRoleChanged(
            resource="kernel", role="unknown", node="", address="", epoch=0, token=0, reason="not heard yet"
        )
        self._rev_moved = asyncio.Event()
        self._looked_at = float("-inf")

    def listen(self) -> None:
        """Subscribes. What is heard are hints, kept for health and to wake those who wait."""
        module = self.module
        module.on(ModuleStateChanged, self._on_module)
        module.on(HealthChanged, self._on_health)
        module.on(LockStateChanged, self._on_lock)
        module.on(LeadershipRoleChanged, self._on_role, key="kernel")
        module.on(ControlStoreCommit, self._on_commit)

    # --- who leads

    @property
    def root(self) -> Actor:
        """Who calls by the unix socket of this node."""
        return ROOT if self.mode is None else root_of(self.mode.node)

    def leader(self) -> LeaderHint | None:
        """The other node that leads the kernel, as far as it was heard."""
        role = self.kernel_role
        if role.role != "follower" or role.node in ("", self.config.node.name):
            return None
        return LeaderHint(role.node, role.address, role.url, role.epoch)

    def check_leads(self) -> None:
        """Raises NotLeader where another node is known to lead, before anything of a write is done here.

        What is not certain (locked, a leadership that is moving) persistence decides, as the last gate.
        """
        locked = self.seen.lock is None or self.seen.lock.locked
        if self.mode is None or locked or self.gate.holds("kernel") or (leader := self.leader()) is None:
            return
        raise NotLeader(f"{leader.node} leads, not this node", hint=_AT_THE_LEADER, leader=leader)

    def with_leader(self, error: NotLeader) -> PiccoloError:
        """The refusal with who leads instead, or NoLeader where nobody is known to."""
        if self.mode is None or error.leader is not None:
            return error
        leader = self.leader()
        if leader is None:
            return NoLeader(f"nobody is known to lead: {error.detail}", hint="try again in a moment", retry_after_s=1.0)
        return NotLeader(error.detail, hint=_AT_THE_LEADER, leader=leader)

    # --- asking

    async def ask(self, request: Request[Reply], *, timeout_s: float = 5.0, target: str | None = None) -> Reply:
        """A question: asked again when the module restarts under it, which changes nothing."""
        for _ in range(_TRIES - 1):
            try:
                return await self.module.call(request, timeout_s=timeout_s, target=target)
            except PeerRestarted:
                continue
        return await self.module.call(request, timeout_s=timeout_s, target=target)

    async def order(self, request: Request[Reply], *, timeout_s: float = 10.0, idem: str = "") -> Reply:
        """A change: sent once. `idem` makes a retry by the client safe."""
        return await self.module.call(request, timeout_s=timeout_s, idem=idem)

    async def supervisor(self, request: dict[str, Any], timeout_s: float = 5.0) -> Any:
        """Its answer to a command of its control socket."""
        return await control.ask(self.module.paths.supervisor_socket, request, timeout_s)

    def tell_locked(self, reason: str) -> None:
        """Why this member is still locked; empty when it is not."""
        if reason and reason != self.seen.locked_because:
            self.log.info("stays locked", reason=reason)
        self.seen = readiness.locked_because(self.seen, reason)

    # --- revisions

    async def rev(self) -> int:
        return (await self.ask(GetRevision())).rev

    async def reach(self, rev: int) -> None:
        """Returns when this node has verified `rev`. Raises DeadlineExceeded."""
        give_up_at = clock.now() + _MIN_REV_WAIT_S
        while True:
            self._rev_moved.clear()
            try:
                at = await self.rev()
            except PiccoloError:
                if clock.now() >= give_up_at:
                    raise
                at = -1
            if at >= rev:
                return
            left_s = give_up_at - clock.now()
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"rev {rev} did not come within {_MIN_REV_WAIT_S:g} s; this node has {at}",
                    hint="ask again, or leave out Piccolo-Min-Rev",
                )
            try:
                async with asyncio.timeout(min(left_s, _REV_POLL_S)):
                    await self._rev_moved.wait()
            except TimeoutError:
                continue

    # --- what is heard

    async def judge(self) -> tuple[Readiness, dict[str, ComponentHealth]]:
        """Is this node ready, and each component. Modules are the supervisor's own word: a dead bus tells nothing."""
        if clock.now() - self._looked_at > _LOOK_S:
            self._looked_at = clock.now()
            await self._look()
        now = clock.now()
        judged, found = readiness.readiness(self.seen, now), readiness.components(self.seen, now)
        return readiness.with_role(judged, found, self.kernel_role.role)

    async def _look(self) -> None:
        said = HealthChanged(component="control", level=Level.OK)
        try:
            found = msgspec.convert(await self.supervisor({"cmd": "modules"}, _LOOK_WAIT_S), tuple[ModuleView, ...])
        except (PiccoloError, msgspec.ValidationError) as error:
            found = ()
            said = HealthChanged(component="control", level=Level.ERROR, reason=f"the supervisor does not answer: {error}")
        self.seen = readiness.health_changed(self.seen, said)
        for each in found:
            if each.name != self.module.name:
                self.seen = readiness.module_changed(self.seen, each.name, each.state, each.reason, clock.now())

    def _on_module(self, event: ModuleStateChanged) -> None:
        if event.module != self.module.name:  # that we live is proven by the answer
            self.seen = readiness.module_changed(self.seen, event.module, event.state, event.reason, clock.now())

    def _on_health(self, event: HealthChanged) -> None:
        self.seen = readiness.health_changed(self.seen, event)

    def _on_lock(self, event: LockStateChanged) -> None:
        self.seen = readiness.lock_changed(self.seen, event)

    def _on_role(self, event: LeadershipRoleChanged) -> None:
        self.kernel_role = event

    def _on_commit(self, event: ControlStoreCommit) -> None:
        self._rev_moved.set()
