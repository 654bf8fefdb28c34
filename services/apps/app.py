"""One app on this node: looks, plans, acts, again and again, and keeps what must be remembered between two looks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from piccolod import clock
from piccolod.errors import Busy, Conflict, Locked, NoLeader, NotLeader, PiccoloError, TermOver, Unavailable
from piccolod.leadership.placement import Standing
from piccolod.protocol.events import AppStateChanged
from services.apps import observe
from services.apps.actions import Actions
from services.apps.backoff import HEALTHY_S, Failures
from services.apps.desired import Desired, Version
from services.apps.discreet import discreet, frames
from services.apps.documents import Stored
from services.apps.health import Phase
from services.apps.node import Node
from services.apps.observe import Look
from services.apps.plan import plan
from services.apps.podman import PodmanError
from services.apps.podman_status import Status
from services.apps.prober import Prober
from services.apps.routes import ANSWER_S
from services.apps.situation import Container, Do, Plan, Route, Situation, State
from services.apps.standby import standing
from services.apps.timeline import Timeline
from services.apps.wanted_route import route_of

_TIMER_S: Final = 10.0
_AGAIN_S: Final = 0.25
_AGAIN_MOST_S: Final = 5.0
_STUCK: Final = 3  # passes in a row that ended in trouble: then other nodes go first
# What is waited for (an exit, a minute of patience) is looked at often at first, and then rarely.
_POLL_S: Final = 0.01
_POLL_MOST_S: Final = 1.0
# A router that is away is told when it is back; nobody waits for it longer than this.
_ROUTED_S: Final = 0.5


class Shown(msgspec.Struct, frozen=True):
    """The last sentence about the app."""

    state: State = State.PENDING
    reason: str = "not looked at yet"
    container_id: str = ""
    epoch: int = 0


class App:
    def __init__(self, node: Node, stored: Stored, changed: asyncio.Event, serves: Callable[[str], bool]) -> None:
        self._node = node
        self._actions = Actions(node, stored)
        self._others_serve = serves
        self._changed = changed  # of anything that other apps may wait for
        self._wake = asyncio.Event()
        self._log = node.module.log.bind(app=stored.desired.name)
        self._failures = Failures()
        self._prober: Prober | None = None
        self._probing: asyncio.Task[None] | None = None
        self._run = ""  # container and pid that are probed
        self._pidfd = -1
        self._live = False  # it was started here, or seen running, and its end was not seen yet
        self._looked = False  # in this life of the module
        self._trial_since_at = 0.0
        self._limbo_since_at = 0.0
        self._troubles = 0
        self._failed_passes = 0  # in a row, for what another node might do better
        self._refusals = 0
        self._repeats = 0
        self._polls = 0  # looks in a row that found nothing to do
        self._last_steps: tuple[Do, ...] = ()
        self._timeline = Timeline()
        self.shown = Shown()
        self.standing: Standing | None = None  # None: nobody is to lead it, or it was not looked at yet
        self.gone = asyncio.Event()  # it is uninstalled
        self.settled = asyncio.Event()  # the last look found nothing to do
        self.at_rest = asyncio.Event()  # the silence around a lock holds it, and nothing of it is left to stop

    @property
    def stored(self) -> Stored:
        return self._actions.stored

    @property
    def restarts(self) -> int:
        return self._failures.total

    @property
    def attached(self) -> dict[str, str]:
        return self._actions.attached or {}

    @property
    def serves(self) -> bool:
        return self._prober is not None and self._prober.health.serves

    @property
    def pending(self) -> bool:
        return self.shown.state is State.PENDING

    @property
    def held(self) -> bool:
        """Whether the silence around a lock keeps it from running."""
        return self.stored.desired.current.manifest.is_led and self._node.silence.holds()

    def want(self, stored: Stored) -> None:
        """Another document; an older one than is known here changes nothing."""
        if stored.generation > self.stored.generation:
            restarted = stored.desired.restarts != self.stored.desired.restarts or stored.desired.running
            if restarted and stored.desired.generation != self.stored.desired.generation:
                self._failures = msgspec.structs.replace(self._failures, row=0, times=())
            self._actions.stored = stored
        self.wake()

    def wake(self) -> None:
        self._polls = 0
        self.settled.clear()
        self._wake.set()

    def abandon(self) -> None:
        """Somebody else ends what is left of it."""
        self._actions.removed = True
        self._wake.set()

    def volumes_changed(self) -> None:
        self._actions.attached = None
        self.wake()

    # --- the loop

    async def run(self) -> None:
        """Until it is uninstalled."""
        while not self._actions.removed:
            self._wake.clear()
            wait_s = await self._pass()
            if wait_s > 0 and not self._actions.removed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
        self._stop_probing()
        self.gone.set()
        self.at_rest.set()

    async def _pass(self) -> float:
        """One look, one plan, its steps. Returns how long there is nothing to do."""
        try:
            return await self._look_and_act()
        except TermOver as error:
            self._say(State.STOPPING, f"its term ended: {error.reason}")
        except (Busy, Conflict, Locked) as error:
            self._say(self.shown.state, error.detail)
        except (NotLeader, NoLeader) as error:  # who leads it, or the documents, is announced
            self._say(State.PENDING if self.shown.state is State.STARTING else self.shown.state, error.detail)
        except PiccoloError as error:
            self._refusals += isinstance(error, PodmanError)
            self._failed_passes += 1
            reason = self._discreet(error.detail)
            self._log.warning("could not go on", reason=reason, state=self.shown.state)
            # podman or a module away: what runs goes on, and its state with it.
            keeps = isinstance(error, Unavailable) and self.shown.state in (State.RUNNING, State.DEGRADED)
            self._say(self.shown.state if keeps else _stuck(self.shown.state), reason)
        except Exception as error:  # a bug in one app's way must not take the others' care away
            self._failed_passes += 1
            self._log.error("failed by a bug", error=type(error).__name__, frames=frames(error))
            self._say(_stuck(self.shown.state), f"a bug of piccolod: {type(error).__name__}")
        self._troubles += 1
        return min(_AGAIN_S * 2.0 ** (self._troubles - 1), _AGAIN_MOST_S)

    def _discreet(self, words: str) -> str:
        desired = self.stored.desired
        versions = (desired.current, desired.candidate)
        return discreet(words, *(version.manifest for version in versions if version is not None))

    async def _look_and_act(self) -> float:
        stored = self.stored
        seen = await observe.look(self._node, self._actions, self._memory())
        seen = await self._account(seen)
        self._looked = True
        self._timeline.of(seen.term.token if seen.term is not None else 0)
        if self.stored is not stored:
            return 0.0  # what was seen was compared with another document
        held = self.held
        made = plan(self._wanted(), seen)
        self._stand(seen, made)
        if made.steps or not held:
            self.at_rest.clear()
        if made.steps:
            self._log.info("acts", state=made.state, reason=made.reason, steps=list(made.steps), epoch=_epoch(seen))
        if made.route is Route.LOCAL:
            await self._route(made, seen)  # who reads `running` can reach it
            self._show(made, seen)
            self._tell_phases(seen)
        else:
            self._show(made, seen)
            await self._route(made, seen)
        if made.failed:
            self._fail(made.failed)
        for step in made.steps:
            if self.stored is not stored:
                return 0.0  # it was planned for another document; each step can be the last (a death can come as well)
            await self._actions.run(step, made, seen)
            self._timeline.did(step)
            if step is Do.START:
                self._live = True
        self._troubles = self._failed_passes = 0
        if made.steps:
            self._refusals = 0
            self._polls = 0
            return self._repeated(made)
        self._repeats, self._last_steps = 0, ()
        self._polls += 1
        self.settled.set()
        if held and not self.at_rest.is_set():
            await asyncio.to_thread(self._node.files.remove, self.stored.desired.name)
            self.at_rest.set()
        wait_s = _TIMER_S if not made.wake_at else max(0.02, min(_TIMER_S, made.wake_at - clock.now()))
        return max(min(wait_s, self._image_wait_s(made)), min(_POLL_S * 1.2**self._polls, _POLL_MOST_S))

    def _tell_phases(self, seen: Situation) -> None:
        if seen.health is None or not seen.health.ready_at:
            return  # it is reached, and has answered nobody yet
        at = self._timeline.served(seen.health.ready_at)
        if at is not None and seen.term is not None and self._node.clustered:
            name = self.stored.desired.name
            self._node.module.spawn(self._node.tell_phases(name, seen.term.token, at), name=f"phases {name}")

    def _stand(self, seen: Situation, made: Plan) -> None:
        held = self.held or self._node.ends
        said = standing(self.stored.desired, seen, made, held=held)
        if not made.steps:
            self._failed_passes = 0
        if said is not None and self._failed_passes >= _STUCK and not self._live:
            said = msgspec.structs.replace(said, reason=f"it could not be started there: {self.shown.reason}")
        before, self.standing = self.standing, said
        if before != self.standing:
            self._changed.set()

    def _repeated(self, made: Plan) -> float:
        """Steps that change nothing must not become a busy loop."""
        self._repeats = self._repeats + 1 if made.steps == self._last_steps else 0
        self._last_steps = made.steps
        return 0.0 if not self._repeats else min(_AGAIN_S * 2.0**self._repeats, _AGAIN_MOST_S)

    def _wanted(self) -> Desired:
        desired = self.stored.desired
        # What another node leads goes on there, and clients of this one with it.
        rests = self.held and not (desired.name in self._node.leaders and self._node.term(desired.name) is None)
        return msgspec.structs.replace(desired, running=False) if self._node.ends or rests else desired

    def _image_wait_s(self, made: Plan) -> float:
        if made.state is not State.PENDING:
            return _TIMER_S
        again_at = self._node.images.again_at(self.stored.desired.current)
        return max(0.05, again_at - clock.now()) if again_at else _TIMER_S

    def _memory(self) -> Look:
        health = self._prober.health if self._prober is not None else None
        needed = self.stored.desired.current.manifest.depends_on
        waits_for = tuple(name for name in needed if not self._others_serve(name))
        return Look(health, self._failures, self._trial_since_at, waits_for, self._refusals)

    # --- what is remembered

    async def _account(self, seen: Situation) -> Situation:
        """Counts what happened since the last look: a run that ended, a run that is well, a trial that began."""
        container = seen.container
        running = container is not None and container.status is Status.RUNNING
        if container is not None and running:
            self._live = True
        elif container is None or container.status in (Status.EXITED, Status.CREATED):
            await self._run_ended(container)
        health = self._prober.health if self._prober is not None else None
        if health is not None and health.ready_at and clock.now() - health.ready_at >= HEALTHY_S and self._failures.row:
            self._failures = self._failures.well()
        self._note_trial(seen)
        self._note_limbo(seen)
        if container is not None and running:
            self._begin_probing(container, self._version_of(seen))
        health = self._prober.health if self._prober is not None and running else None
        return msgspec.structs.replace(
            seen,
            health=health,
            failures=self._failures,
            trial_since_at=self._trial_since_at,
            limbo_since_at=self._limbo_since_at,
        )

    async def _run_ended(self, container: Container | None) -> None:
        """Whether the end of a run is a failure depends on whether anybody asked for it."""
        health = self._prober.health if self._prober is not None else None
        was_live, self._live = self._live, False
        self._stop_probing()
        wanted = self._wanted().wanted(self._node.boot_id)
        if not was_live or not wanted or container is None or container.status is not Status.EXITED:
            return
        if health is not None and health.phase is Phase.UNHEALTHY:
            reason = f"unhealthy: {health.reason}"
        else:
            reason = await self._why_it_ended(container)
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self._live = False  # it is counted once
        self._failures = self._failures.failed(clock.now(), reason)
        self._log.warning("the app failed", reason=reason, failures=self._failures.row)

    async def _why_it_ended(self, container: Container) -> str:
        found = await self._node.podman.inspect(container.id)
        if found is not None and found["State"].get("OOMKilled"):
            limit = self.stored.desired.current.manifest.resources.limits.memory
            return f"killed for using more memory than its limit of {limit}" if limit else "killed by the kernel: out of memory"
        # Not its last lines: what an app prints may be secret, and reasons are logged and told to everybody.
        code = container.exit_code
        reason = f"killed by signal {code - 128}" if 128 < code < 160 else f"exited with code {code}"
        return f"{reason}; `piccoloctl logs {self.stored.desired.name}` shows its last lines"

    def _note_trial(self, seen: Situation) -> None:
        trial = self.stored.desired.candidate
        runs = trial is not None and seen.container is not None and seen.container.badge.spec == seen.trial_digest
        if trial is None:
            self._trial_since_at = 0.0
        elif runs and not self._trial_since_at:
            self._trial_since_at = clock.now()

    def _note_limbo(self, seen: Situation) -> None:
        container = seen.container
        limbo = bool(seen.severed) or (container is not None and container.status in (Status.STOPPING, Status.UNKNOWN))
        if not limbo:
            self._limbo_since_at = 0.0
        elif not self._limbo_since_at:
            self._limbo_since_at = clock.now()

    def _version_of(self, seen: Situation) -> Version:
        desired = self.stored.desired
        if desired.candidate is not None and seen.container is not None and seen.container.badge.spec == seen.trial_digest:
            return desired.candidate
        return desired.current

    # --- the watched run

    def _begin_probing(self, container: Container, version: Version) -> None:
        run = _run(container)
        if self._run == run:
            return
        self._stop_probing()
        self._run = run
        served = not self._looked and self.stored.desired.candidate is None
        self._prober = Prober(self._node.podman, container.id, container.address, version.manifest, self.wake, served=served)
        self._probing = self._node.module.spawn(self._probe(self._prober), name=f"probe {version.manifest.name}")
        with suppress(OSError):
            # Faster than podman's events, and there even when podman is not.
            self._pidfd = os.pidfd_open(container.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)

    async def _probe(self, prober: Prober) -> None:
        try:
            await prober.run()
        except asyncio.CancelledError:
            if prober is self._prober:
                raise

    def _process_ended(self) -> None:
        self._close_pidfd()
        self.wake()

    def _stop_probing(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        self._probing, self._prober, self._run = None, None, ""
        self._close_pidfd()

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    # --- what others see

    def _show(self, made: Plan, seen: Situation) -> None:
        container_id = seen.container.id if seen.container is not None else ""
        state, reason = made.state, made.reason
        if state is State.RUNNING and (trouble := self._node.routes.trouble(self.stored.desired.name)):
            state, reason = State.DEGRADED, trouble
        if state in (State.STOPPING, State.STOPPED) and self.held and self.stored.desired.wanted(self._node.boot_id):
            reason = "stopped for the lock: it comes back with the unlock"
        self._say(state, reason, container_id, _epoch(seen))

    def _say(self, state: State, reason: str, container_id: str | None = None, epoch: int | None = None) -> None:
        before = self.shown
        self.shown = Shown(
            state,
            reason,
            before.container_id if container_id is None else container_id,
            before.epoch if epoch is None else epoch,
        )
        if (before.state, before.reason) == (state, reason):
            return
        desired = self.stored.desired
        self._log.info("is now", state=state, reason=reason)
        self._node.module.publish(AppStateChanged(app=desired.name, state=state, reason=reason, generation=desired.generation))
        self._changed.set()

    async def _route(self, made: Plan, seen: Situation) -> None:
        """Before the steps: nobody may be sent to what is about to stop."""
        own = self._node.module.config.node.address
        request = route_of(self.stored.desired, self._version_of(seen), made, seen, own=own, last_epoch=self.shown.epoch)
        await self._node.routes.set(request, ANSWER_S if made.steps else _ROUTED_S)


def _run(container: Container) -> str:
    return f"{container.id}:{container.pid}"


def _stuck(state: State) -> State:
    """What to show when a step fails: nothing runs that should, or something does that should not."""
    if state in (State.STOPPING, State.STOPPED):
        return State.STOPPING
    return State.PENDING if state in (State.PENDING, State.PULLING) else State.DEGRADED


def _epoch(seen: Situation) -> int:
    return seen.term.epoch if seen.term is not None else 0
