"""`cluster join`: a node without data of its own becomes one more member.

The rename of `mode` is the commit point here, the redeemed token on the other side: a crash between them leaves a node alone
that is known to the cluster already. The same join again, with the same token, goes on by the key that was kept (attempt.py).
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

import msgspec

from piccolod import clock, cluster_mode
from piccolod.errors import Conflict, DeadlineExceeded, Failed, NoLeader, NotLeader, OutcomeUnknown, Unavailable
from piccolod.leadership.timing import founded
from piccolod.module import Module
from piccolod.pki import authority, token
from piccolod.pki.identity import Role
from piccolod.pki.token import JoinToken
from piccolod.protocol.cluster import Admission, JoinCluster, Welcome
from piccolod.protocol.joining import JoinBody
from services.consensus.cluster_records import WITNESS
from services.consensus.joining import door, measure, outside
from services.consensus.joining.attempt import Attempt, AttemptFile
from services.consensus.joining.folder import Folder
from services.consensus.joining.measure import Stop
from services.consensus.joining.place import etcd_settings, mode, own_record, peer_url
from services.consensus.joining.supervised import Supervised, undo

# A member change is refused for 5 s after the last one, and a learner before this one has to become a voter first.
ANSWER_S: Final = 45.0
AGAIN_S: Final = 20.0
PAUSE_S: Final = 0.5


class Join:
    """One attempt. `run` returns once this node is a member, or undoes what it did here and raises what was in the way."""

    def __init__(self, module: Module, folder: Folder, supervised: Supervised) -> None:
        self._module = module
        self._folder = folder
        self._supervised = supervised
        self._node = module.config.node.name
        self._etcd = module.config.etcd
        self._attempts = AttemptFile(module.paths)
        self.notes: tuple[str, ...] = ()  # for who asked

    async def run(self, request: JoinCluster) -> None:
        log = self._module.log
        pinned = token.parse(request.token)
        etcd_id = await outside.look(self._module.paths, self._etcd) if self._etcd.is_external else 0
        host, port = door.place(request.address, self._module.config.rpc_port)
        attempt = await asyncio.to_thread(self._attempts.begin, pinned, self._node)
        stop = await measure.hard_stop(self._module)
        body = self._introduction(pinned, Role(request.role), attempt, stop.stop_s, etcd_id)
        log.info("joining a cluster", address=host, port=port, role=request.role)
        answer = await self._answer(host, port, pinned.fingerprint, body)
        welcome = _welcome(answer, pinned.fingerprint)
        cluster = welcome.admission.cluster
        self._check_etcd(welcome.admission, etcd_id)
        await asyncio.to_thread(self._folder.make)
        try:
            self.notes = await asyncio.to_thread(self._shortfalls, welcome, stop)
            await asyncio.to_thread(self._write_folder, welcome, attempt)
            if self._etcd.is_external:
                await outside.enter(self._module.paths, self._etcd, cluster, self._node, own_record(self._module))
            else:
                await self._supervised.etcd_as_written()
                await self._supervised.etcd_ready()
            await asyncio.to_thread(self._folder.give_store_up)
            await asyncio.to_thread(self._folder.owe_restarts)
            await asyncio.to_thread(cluster_mode.enter, self._folder.path, mode(self._module, cluster))
        except BaseException as error:
            if cluster_mode.load(self._folder.path) is None:
                log.warning("could not join the cluster", reason=str(error) or type(error).__name__)
                await undo(self._folder, self._supervised, self._etcd)
            raise
        await asyncio.to_thread(self._attempts.forget)
        await asyncio.to_thread(self._folder.settle_store)
        log.info("joined the cluster", cluster=cluster, members=sorted(welcome.admission.members))

    async def _answer(self, host: str, port: int, fingerprint: str, body: JoinBody) -> bytes:
        """Asks again where a member was cut off in the middle (a restart, another leader): it knows the key by now."""
        give_up_at = clock.now() + AGAIN_S
        asked = False
        while True:
            try:
                return await asyncio.to_thread(door.knock, host, port, fingerprint, body, ANSWER_S)
            except (OutcomeUnknown, DeadlineExceeded, NoLeader, NotLeader, Unavailable) as error:
                asked = asked or not isinstance(error, Unavailable)
                if not asked or clock.now() >= give_up_at:
                    raise
                self._module.log.info("asks again to be let in", reason=error.detail)
            await asyncio.sleep(PAUSE_S)

    def _check_etcd(self, admission: Admission, etcd_id: int) -> None:
        """What the member has checked, unless it is of before this question. Raises Conflict."""
        if admission.etcd_id != etcd_id:
            raise Conflict(
                f"the cluster {admission.cluster} has its etcd kept another way than this node's [etcd] says",
                hint=f"`piccoloctl nodes remove {self._node}` on a member frees the name; then mend [etcd] here and join again",
            )

    def _introduction(self, pinned: JoinToken, role: Role, attempt: Attempt, stop_s: float, etcd_id: int) -> JoinBody:
        own, request = own_record(self._module), authority.make_request(attempt.key.encode())
        return JoinBody(
            id=pinned.id, secret=pinned.secret, node=self._node, role=role, address=own.address, csr=request, rpc=own.rpc,
            client_url=own.client_url, peer_url=peer_url(self._module.config), api_url=own.api_url,
            spent=attempt.spent, stop_s=stop_s, etcd_id=etcd_id,
        )  # fmt: skip

    def _shortfalls(self, welcome: Welcome, stop: Stop) -> tuple[str, ...]:
        """Where the timing of the cluster does not hold here: it moves leadership without need, and never too late."""
        told, own = welcome.admission.timing, welcome.admission.members.get(self._node)
        if own is not None and own.role == WITNESS:  # it runs no containers
            stop = Stop(told.stop_s, "of the cluster")
        timing = founded(told.profile, stop.stop_s)
        places = [urlsplit(each.client_url) for each in welcome.admission.members.values() if each.client_url]
        others = [(each.hostname, each.port) for each in places if each.hostname and each.port]
        folder = None if self._etcd.is_external else self._module.paths.state
        found = measure.shortfalls(timing, stop, folder, others)
        if not found:
            return ()
        self._module.log.warning("the timing of the cluster does not hold here", profile=told.profile, reason="; ".join(found))
        return (
            f"the timing {told.profile!r} of this cluster does not hold on this node, measured and doubled, "
            f"so leadership may move without a fault: {'; '.join(found)}",
        )

    def _write_folder(self, welcome: Welcome, attempt: Attempt) -> None:
        """Every file is synced, and a busy disk takes longer for that than a beat may."""
        admission, folder = welcome.admission, self._folder
        timing = founded(admission.timing.profile, admission.timing.stop_s)
        folder.keep_certificate(welcome.certificate, attempt.key.encode(), welcome.ca)
        folder.keep_timing(admission.timing)
        folder.keep_members(admission.members)
        self._attempts.spend(attempt, admission.member)
        if not self._etcd.is_external:
            folder.keep_etcd(etcd_settings(self._module, folder, admission.etcd_token, timing, admission.initial_cluster))


def _welcome(answer: bytes, fingerprint: str) -> Welcome:
    try:
        welcome = msgspec.json.decode(answer, type=Welcome)
    except msgspec.MsgspecError as error:
        raise Failed(f"the member's answer cannot be read: {error}", hint="is it a newer piccolod?") from error
    if authority.fingerprint_of(welcome.ca) != fingerprint or not authority.signed_by(welcome.certificate, welcome.ca):
        raise Unavailable("the member's answer is not signed by the authority of the token", hint="make another token")
    return welcome
