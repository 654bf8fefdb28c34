"""`cluster init`: a node alone becomes the first member of a cluster, and its log moves into etcd.

The rename of `mode` is the commit point. Until then etcd and the folder are drafts: whatever fails or crashes before leaves a
node alone, and the next start wipes what is left. Nothing is written here between the last look at the log and the rename:
writes are parked, the term of the kernel is closed on the page, which no write passes, and only what is at rest is moved. It is
compared once more right before the rename.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from piccolod import cluster_mode, etcd_conf
from piccolod.errors import Conflict, PiccoloError, Unavailable
from piccolod.leadership import timing as leadership
from piccolod.leadership.page import PageReader
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.timing import Choice
from piccolod.module import Module
from piccolod.pki import authority
from piccolod.protocol.base import Reply, Request
from piccolod.protocol.cluster import InitCluster, Timing
from piccolod.protocol.joining import IssueCertificate, Issued
from piccolod.protocol.log import ExportLog
from piccolod.protocol.persistence import CryptoStatus
from services.consensus import access, cluster_records, seed
from services.consensus.etcd.client import Client
from services.consensus.etcd.upkeep import local_client
from services.consensus.gen import GenFile
from services.consensus.joining import measure, outside
from services.consensus.joining.folder import Draft, Folder
from services.consensus.joining.moving import Move, writable
from services.consensus.joining.place import etcd_settings, mode, own_record
from services.consensus.joining.supervised import Supervised, undo
from services.consensus.leaser import Leaser
from services.consensus.memory import MemoryFile

_EXPORT_S: Final = 30.0
_CERTIFICATE_S: Final = 5.0
HOLD_S: Final = 5.0  # longer than what is left to do then; the process that holds ends right after it


class Init:
    """One attempt. `run` returns once this node is a member, or undoes what it did and raises what was in the way."""

    def __init__(self, module: Module, leaser: Leaser, folder: Folder, supervised: Supervised, request: InitCluster) -> None:
        self._module = module
        self._leaser = leaser
        self._folder = folder
        self._supervised = supervised
        self._request = request
        self._node = module.config.node.name
        self._etcd = module.config.etcd
        self.notes: tuple[str, ...] = ()  # for who asked

    async def run(self, status: CryptoStatus) -> None:
        log, cluster = self._module.log, status.cluster_id
        if self._etcd.is_external:
            await outside.look(self._module.paths, self._etcd)
            await undo(self._folder, self._supervised, self._etcd)  # what a former attempt could not
        await asyncio.to_thread(self._folder.make)
        try:
            commit_s = await self._claim(cluster) if self._etcd.is_external else 0.0
            stop = await measure.hard_stop(self._module)
            chosen = await asyncio.to_thread(measure.choice, self._request.profile, self._module.paths.state, stop, commit_s)
            self.notes = (f"timing {chosen.why}",)
            log.info("founding a cluster", cluster=cluster, profile=chosen.why)
            await self._write_folder(cluster, chosen)
            if not self._etcd.is_external:
                await self._supervised.etcd_as_written()
                await self._supervised.etcd_ready()
            move = await self._fill(cluster, chosen)
            await asyncio.to_thread(self._folder.owe_restarts)
            await move.check(HOLD_S)
            await asyncio.to_thread(cluster_mode.enter, self._folder.path, mode(self._module, cluster))
        except BaseException as error:
            if cluster_mode.load(self._folder.path) is None:
                log.warning("could not found the cluster", reason=str(error) or type(error).__name__)
                await undo(self._folder, self._supervised, self._etcd)
            raise
        await self._settle()
        log.info("founded the cluster", cluster=cluster)

    async def _claim(self, cluster: str) -> float:
        """What a commit takes in the etcd of an owner, where this attempt has its mark from now on."""
        draft = Draft(cluster=cluster, mark=secrets.token_hex(16))
        await asyncio.to_thread(access.remember, self._module.paths, self._etcd)
        await asyncio.to_thread(self._folder.keep_draft, draft)
        client = self._client()
        try:
            return await outside.claim(client, draft)
        finally:
            await client.close()

    async def _settle(self) -> None:
        """The draft first: with it the cluster could still be taken for one that was not founded."""
        draft = self._folder.draft()
        if draft is None:
            return
        await asyncio.to_thread(self._folder.drop_draft)
        client = self._client()
        try:
            await outside.settle(client, draft)
        except PiccoloError as error:
            self._module.log.warning("the mark of the founding stays in etcd", reason=error.detail)
        finally:
            await client.close()

    def _client(self) -> Client:
        if self._etcd.is_external:
            return access.external(self._module.paths, self._etcd).client(outside.RPC_S)
        settings = etcd_conf.read(self._module.paths.etcd_conf)
        assert settings is not None
        return local_client(settings)

    async def _write_folder(self, cluster: str, chosen: Choice) -> None:
        key = authority.make_key()
        address = self._module.config.node.address
        order = IssueCertificate(
            csr=authority.make_request(key), node=self._node, address=address, auto_unlock=self._request.auto_unlock
        )  # fmt: skip
        issued = await self._module.call(order, timeout_s=_CERTIFICATE_S)
        await asyncio.to_thread(self._keep, cluster, chosen, issued, key)

    def _keep(self, cluster: str, chosen: Choice, issued: Issued, key: bytes) -> None:
        """Every file is synced, and a busy disk takes longer for that than a beat may."""
        folder = self._folder
        folder.keep_certificate(issued.certificate, key, issued.ca)
        folder.keep_timing(Timing(profile=chosen.timing.profile, stop_s=chosen.timing.stop_s))
        folder.keep_members({self._node: own_record(self._module)})
        if self._etcd.is_external:
            return
        token = f"piccolo-{cluster}-{secrets.token_hex(4)}"
        folder.keep_etcd(etcd_settings(self._module, folder, token, chosen.timing, {}))

    async def _fill(self, cluster: str, chosen: Choice) -> Move:
        paths = self._module.paths
        client, prefix = self._client(), cluster_records.prefix(cluster)
        try:
            wrote_last = (await self._export(ExportLog(after=0, limit=1))).gen
            gen = await self._begin(client, prefix, chosen.timing, wrote_last)
            move = Move(client, prefix, gen, self._export)
            await move.begin()
            await move.follow(HOLD_S)  # those who write now are answered first
            await self._close_kernel()
            await move.finish(HOLD_S)
            memory = await seed.memory_of(client, prefix, gen)
            await asyncio.to_thread(MemoryFile(paths.cluster / "seen.json").write, memory)
            return move
        finally:
            await client.close()

    async def _begin(self, client: Client, prefix: str, timing: leadership.Timing, wrote_last: int) -> int:
        """Names the store and this member. What is led is led on, with the tokens that it has; epochs go on counting."""
        await writable(client, prefix)
        gen, led = await self._take_terms(client, prefix, timing, wrote_last)
        await seed.put_gen(client, prefix, gen)
        own = own_record(self._module)
        await seed.put_node(client, prefix, self._node, own)
        ended = {name: record.epoch for name, record in self._leaser.records().items() if name not in led}
        await seed.put_released(client, prefix, ended, self._node, timing.span_s)
        return gen

    async def _take_terms(
        self, client: Client, prefix: str, timing: leadership.Timing, wrote_last: int
    ) -> tuple[int, frozenset[str]]:
        """The gen of the new store, and what goes on in it.

        Nothing does, so that it begins anew, when etcd is beyond its tokens, as an owner's is that others write to, or the log
        was written under a gen above that of the terms (`wrote_last`: a repair that lost revs raises it): no term of theirs
        could write on it.
        """
        paths, node = self._module.paths, self._module.config.node
        page, held = PageReader(paths.page).read(), self._leaser.records()
        if page is not None and wrote_last > page.gen:
            self._module.log.warning("what is led here begins anew in the cluster", reason="a repair of the store lost revs")
        elif self._etcd.is_external:
            self._module.log.info("what is led here begins anew in the cluster", reason="its etcd is not for this node alone")
        elif page is not None and page.terms.keys() <= held.keys():
            try:
                await seed.put_terms(client, prefix, self._node, node.address, page, tuple(held.values()), timing)
                return page.gen, frozenset(page.terms)
            except Conflict as error:
                self._module.log.warning("what is led here begins anew in the cluster", reason=error.detail)
        least = max([wrote_last, *(record.gen for record in held.values())])
        return await asyncio.to_thread(GenFile(paths.consensus / "gen").next, least), frozenset()

    async def _export(self, request: Request[Reply]) -> Reply:
        return await self._module.call(request, timeout_s=_EXPORT_S)

    async def _close_kernel(self) -> None:
        """The writes that are parked must find no term here when the hold ends before their process does."""
        kernel = self._leaser.records().get(RESOURCE_KERNEL)
        if kernel is None:
            raise Unavailable("this node does not lead its own store yet", hint="try again in a moment")
        await self._leaser.close(RESOURCE_KERNEL, kernel.token)
