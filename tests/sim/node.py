"""One simulated machine: its clock, the deadline page, the leash table, and the processes that read them as real ones do."""

from __future__ import annotations

from collections.abc import Callable

from piccolod import clock
from piccolod.leadership import actions, events, guard
from piccolod.leadership import page as deadline_page
from piccolod.leadership.actions import Action
from piccolod.leadership.events import Memory, PageState, PageTerm
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import Page, Term
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.leadership.state import Config
from piccolod.leadership.timing import Timing
from tests.sim.after_crash import AfterCrash
from tests.sim.apps import Apps
from tests.sim.driver import Driver
from tests.sim.network import Link
from tests.sim.oracle import Oracle
from tests.sim.persistence import Persistence
from tests.sim.rules import Rules
from tests.sim.world import Clock, World

GUARDS = ("supervisor", "leash.0", "leash.1", "apps")


class Node:
    """Processes by name: `consensus` is the driver; the guards are `GUARDS`. A frozen one does what it missed when it thaws."""

    def __init__(
        self, world: World, name: str, link: Link, oracle: Oracle, timing: Timing, clock: Clock, rules: Rules, wants: dict[str, float],
        members: frozenset[str],
    ) -> None:  # fmt: skip
        self.world = world
        self.name = name
        self.link = link
        self.oracle = oracle
        self.timing = timing
        self.clock = clock
        self.rules = rules
        self.wants = wants
        self.members = members
        self.listener: Callable[[str, Action], None] | None = None
        self.released: set[str] = set()
        self.stalls = 0.0
        self.stall_s = 0.0
        self.memory: Memory | None = None
        self.page: Page | None = None
        self.table: dict[str, Entry] = {}
        self.up = False
        self.stalled_until = float("-inf")
        self.woke_late = False
        self._stood_until = float("-inf")
        self.counts = {"sessions over": 0, "terms over": 0, "soft stops": 0, "kills": 0}
        self.guards = [name for name in GUARDS if name in rules.guards]
        self.apps = Apps(self)
        self.persistence = Persistence(self)
        self.driver: Driver | None = None
        self._boots = 0
        self._frozen: dict[str, float] = {}
        self._frozen_at: dict[str, float] = {}
        self._tree_up = False
        self._dying: dict[str, float] = {}
        self._proofs: list[tuple[str, Callable[[], None]]] = []
        self._deadline_at = -1.0
        self._soft_at = -1.0

    @property
    def boot_id(self) -> str:
        return f"{self.name}-{self._boots}"

    # --- power, processes

    def power_on(self) -> None:
        if not self.up:
            self.up = True
            self._boots += 1
            self.page = None
            self.start_tree()

    def power_off(self) -> None:
        """Everything dies at once, and the page with it."""
        self.up = False
        self.kill_tree()
        for container in list(self.table):
            self._gone(container)
        self.oracle.kernel_acts(self, self.world.now)
        self.page = None
        self._proofs.clear()

    @property
    def boots(self) -> int:
        return self._boots

    @property
    def tree_up(self) -> bool:
        return self._tree_up

    def crash_tree(self) -> None:
        """The supervisor dies, and its modules with it. The service manager runs the release hook, then starts it again."""
        if not self._tree_up:
            return
        self.kill_tree()
        self.world.after(self.world.between(0.02, 0.1), AfterCrash(self).run, self._boots)

    def start_tree(self) -> None:
        if self.up and not self._tree_up:
            self._tree_up = True
            self._frozen.clear()
            self.start_consensus()
            self.apps.reconcile()

    def kill_tree(self) -> None:
        """Consensus, supervisor and apps die; leashes and containers live on."""
        self._tree_up = False
        self._frozen_at["supervisor"] = self.clock.now()
        if self.driver is not None:
            self.driver.kill()
        self.apps.forget()

    def start_consensus(self) -> None:
        if not (self.up and self._tree_up) or (self.driver is not None and self.driver.alive):
            return
        self.driver = Driver(self.world, self, self.link, Config(self.name, f"addr-{self.name}", self.timing))
        running = {entry.resource for entry in self.table.values()}
        shown = None
        if self.page is not None:
            terms = {name: PageTerm(term.token, term.epoch, term.closing) for name, term in self.page.terms.items()}
            shown = PageState(self.page.gen, self.page.sid, self.page.lease_id, self.page.soft_at, self.page.hard_at, terms)
            running |= {RESOURCE_KERNEL} & set(terms)
        self.driver.start(events.Started(self.boot_id, shown, self.memory, tuple(sorted(running))))
        self.driver.feed(events.Members(self.members))
        for resource in self.wants:
            self.campaign(resource)

    def campaign(self, resource: str) -> None:
        if self.driver is not None and resource not in self.released:
            self.driver.feed(events.Campaign(resource, delay_s=self.wants[resource]))

    def release(self, resource: str) -> None:
        """Those above want it to be led elsewhere."""
        if self.driver is not None and resource in self.driver.state.terms:
            self.released.add(resource)
            self.driver.feed(events.Release(resource, self.driver.state.terms[resource].token, Reason.RELEASED))

    def kill_consensus(self, back_after_s: float) -> None:
        if self.driver is not None and self.driver.alive:
            self.driver.kill()
            self.world.after(back_after_s, self.start_consensus)

    def freeze(self, process: str, for_s: float) -> None:
        until = self.world.now + for_s
        if process == "consensus":
            if self.driver is not None:
                self.driver.freeze(until)
            return
        if not self.is_frozen(process):
            self._frozen_at[process] = self.clock.now()
        self._frozen[process] = max(self._frozen.get(process, -1.0), until)
        if process == "apps":
            self.world.at(self._frozen[process], self.apps.reconcile)

    def is_frozen(self, process: str) -> bool:
        return self._frozen.get(process, -1.0) > self.world.now

    def thaws_at(self, process: str) -> float:
        return self._frozen.get(process, -1.0)

    def stall_whole(self, for_s: float, *, clock_stops: bool) -> None:
        """The machine stands still, and every guard with it."""
        if self.stalled_until > self.world.now:
            return
        self.stalled_until = self.world.now + for_s
        # Before anything thaws: what it finds on waking.
        self.world.at(self.stalled_until, self._wakes, not clock_stops)
        if clock_stops:
            self._stood_until = self.stalled_until
            self.world.at(self.stalled_until, self._stood_still, for_s)
        for process in ("consensus", *GUARDS, "podman"):
            self.freeze(process, for_s)
        for container in [container for container, at in self._dying.items() if at > self.world.now]:
            self._dying[container] += for_s

    def _stood_still(self, for_s: float) -> None:
        self.clock.stood_still(for_s)
        self._guard()
        if self.page is not None:
            self._kernel_acts(self.page)

    @property
    def clock_stood(self) -> bool:
        """Its clock stood still not long ago, so that its deadlines may lie behind those of others."""
        return self.world.now < self._stood_until + 2 * self.timing.span_s

    def _wakes(self, clock_ran: bool) -> None:
        self.woke_late = clock_ran and self.page is not None and self.clock.now() >= self.page.hard_at

    @property
    def stalled_lately(self) -> bool:
        return self.world.now < self.stalled_until + 2 * self.timing.span_s

    def supervisor_at(self) -> float:
        if self._tree_up and not self.is_frozen("supervisor"):
            return self.clock.now()
        return self._frozen_at.get("supervisor", float("-inf"))

    # --- the page

    def write_page(self, state: PageState) -> bool:
        """What `PageWriter.write` does, and whether it took it."""
        terms = {name: Term(term.token, term.epoch, self.rules.shown(term.closing)) for name, term in state.terms.items()}
        seq = self.page.seq + 1 if self.page is not None else 1
        page = Page(seq, state.gen, state.sid, state.lease_id, self.boot_id, state.soft_at, state.hard_at, terms)
        if self.page is not None and deadline_page._revives(self.page, page, self.clock.now()):
            return False
        self.page = page
        self._kernel_acts(page)
        self._guard()
        if self.apps.late:
            self.apps.reconcile()
        return True

    def gate(self, resource: str) -> int:
        """The token of the open term, as `Gate.check` gives it; 0 for a shut gate."""
        page = self.page
        if page is None or page.boot_id != self.boot_id or self.clock.now() >= page.hard_at:
            return 0
        term = page.terms.get(resource)
        return term.token if term is not None and not term.closing else 0

    def _kernel_acts(self, page: Page) -> None:
        opened = self.gate(RESOURCE_KERNEL) != 0
        self.oracle.kernel_acts(self, self.clock.true(page.hard_at) if opened else self.world.now)

    # --- guards

    def arm(self, container: str, resource: str, token: int) -> None:
        term = self.page.terms.get(resource) if self.page is not None else None
        # Of a term that is over: no guard takes it for one that is open.
        epoch = term.epoch if term is not None and term.token == token else 0
        self.table[container] = Entry(container, resource, token, epoch, "", 4242, 1, self.boot_id)
        self._guard()

    def _guard(self) -> None:
        """Each guard looks within a tick of whatever it has to notice; between looks nothing happens that it would see."""
        if not self.table:
            return
        late_s = self.timing.guard_tick_s + self.timing.lateness_s
        if any(container not in self._dying for container in self._overdue()):
            for name in self.guards:
                self.world.after(late_s * self.world.chance.random(), self._guard_looks, name)
        page = self.page
        if page is not None and self.clock.now() < page.hard_at < clock.FOREVER:
            if self._deadline_at <= self.clock.now():
                self.world.at(self.clock.true(page.hard_at) + 1e-6, self._deadline, page.hard_at)
                self._deadline_at = page.hard_at
            if self._soft_at <= self.clock.now() < page.soft_at:
                self.world.at(self.clock.true(page.soft_at) + 1e-6, self._soft, page.soft_at)
                self._soft_at = page.soft_at

    def _deadline(self, _at: float) -> None:
        self._deadline_at = -1.0
        self._guard()

    def _soft(self, at: float) -> None:
        """apps asks led containers to stop when a renewal is missing."""
        self._soft_at = -1.0
        if self.page is not None and self.page.soft_at == at and not self.is_frozen("apps") and self.table:
            self.counts["soft stops"] += 1
            self.apps.stop_politely(None)
        self._guard()

    def _guard_looks(self, name: str) -> None:
        if self.is_frozen(name):
            self.world.at(self.thaws_at(name), self._guard_looks, name)
        elif self.up and (self._tree_up or name.startswith("leash")):
            for container in self._overdue():
                self.kill(container)

    def _overdue(self) -> list[str]:
        return [entry.container for entry in guard.overdue(self.page, self.table.values(), self.clock.now(), self.boot_id)]

    def kill(self, container: str) -> None:
        stop_s = self.timing.stop_s
        self.counts["kills"] += 1
        self.dies(container, stop_s if self.world.happens(0.3) else self.world.between(0, stop_s))

    def dies(self, container: str, after_s: float) -> None:
        at = self.world.now + after_s
        if container in self.table and at < self._dying.get(container, float("inf")):
            self._dying[container] = at
            self.world.at(at, self._dead, container)

    def _dead(self, container: str) -> None:
        at = self._dying.get(container)
        if at is None:
            return
        if at > self.world.now:
            self.world.at(at, self._dead, container)
            return
        self._gone(container)
        self.apps.reconcile()

    def _gone(self, container: str) -> None:
        self._dying.pop(container, None)
        entry = self.table.pop(container, None)
        if entry is not None:
            self.oracle.ends(entry.resource, self) if not self._other(entry) else None
            waiting = [proof for proof in self._proofs if proof[0] == entry.resource]
            for proof in waiting:
                self._proofs.remove(proof)
                self.prove(*proof)

    def _other(self, gone: Entry) -> bool:
        return any(entry.resource == gone.resource and self.apps.lives(entry.container) for entry in self.table.values())

    # --- what consensus asks for and says

    def prove(self, resource: str, stopped: Callable[[], None]) -> None:
        """`stopped` once the table shows nothing of the resource."""
        if any(entry.resource == resource for entry in self.table.values()):
            self._proofs.append((resource, stopped))
        else:
            self.world.after(0.002, stopped)

    def told(self, driver: Driver, action: Action) -> None:
        if self.listener is not None:
            self.listener(self.name, action)
        kind = type(action)
        if kind is actions.Opened:
            if action.resource == RESOURCE_KERNEL:
                self.persistence.go_on()
            else:
                self.apps.reconcile()
        elif kind is actions.Closing:
            self.apps.stop(action.resource)
        elif kind is actions.Over:
            self.counts["terms over"] += 1
        elif kind is actions.SessionOver:
            self.counts["sessions over"] += 1
