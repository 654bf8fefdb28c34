"""Whether entries and snapshots hang together: pure, and without the key.

`Chain` takes the entries of one log in order and says where they stop to be what was written. The key adds the proof that
they were sealed here (`entry.open_entry`); without it a flip, a gap, a swap and a cut are found all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from services.persistence.entry import (
    GENESIS,
    EntryHeader,
    Sealed,
    SnapshotHeader,
    digest_of,
    entry_header,
    snapshot_header,
)
from services.persistence.head import Mark
from services.persistence.log import Gap


class Broken(Exception):
    """The first thing that is wrong: at `rev`, and everything from there on is not to be trusted."""

    def __init__(self, rev: int, what: str) -> None:
        super().__init__(what)
        self.rev = rev
        self.what = what


class Orphan(Broken):
    """An entry that is whole and follows another one than the entry before it."""


class Chain:
    """The verified end of a log: `rev` and `digest` of its last entry, `gen` and `epoch` that no later one may go below."""

    def __init__(self, cluster: str, gaps: Sequence[Gap] = (), anchors: Mapping[int, SnapshotHeader] | None = None) -> None:
        self._cluster = cluster
        self._gaps = {gap.first: gap for gap in gaps}
        self._anchors = anchors or {}
        self.rev = 0
        self.digest = GENESIS
        self.gen = 0
        self.epoch = 0

    def fork(self) -> Chain:
        """Another chain that stands where this one does, for entries that are yet to be believed. It crosses no gap."""
        fork = Chain(self._cluster)
        fork.rev, fork.digest, fork.gen, fork.epoch = self.rev, self.digest, self.gen, self.epoch
        return fork

    def accept(self, entry: Sealed) -> EntryHeader:
        """The header of the next entry. Raises Broken, and then the chain is unchanged."""
        if entry.rev != self.rev + 1:
            self.cross_gap()
        rev = self.rev + 1
        if entry.rev != rev:
            raise Broken(rev, f"entry {rev} is missing")
        header = _entry_header(entry)
        self._check(header, rev)
        self.advance(header, entry.digest)
        return header

    def advance(self, header: EntryHeader, digest: bytes) -> None:
        """Stands on an entry that is known to be the next: verified, or sealed here on top of this chain."""
        self.rev, self.digest = header.rev, digest
        self.gen, self.epoch = header.gen, header.epoch

    def cross_gap(self) -> None:
        """Steps over a declared gap that begins here, by the snapshot that stands for it. Raises Broken without one."""
        gap = self._gaps.get(self.rev + 1)
        if gap is None:
            return
        anchor = self._anchors.get(gap.last)
        if anchor is None:
            raise Broken(gap.first, f"the snapshot of {gap.last} is missing, which stands for {gap.first} to {gap.last}")
        self.stand_on(anchor)

    def stand_on(self, snapshot: SnapshotHeader) -> None:
        """Goes on from a verified snapshot."""
        self.rev, self.digest = snapshot.rev, snapshot.of
        self.gen, self.epoch = snapshot.gen, snapshot.epoch

    def _check(self, header: EntryHeader, rev: int) -> None:
        if header.rev != rev:
            raise Broken(rev, f"entry {rev} says that it is {header.rev}")
        if header.cluster != self._cluster:
            raise Broken(rev, f"entry {rev} is of another cluster")
        if header.parent != self.digest:
            raise Orphan(rev, f"entry {rev} does not follow the entry before it")
        if (header.gen, header.epoch) < (self.gen, self.epoch):
            raise Broken(rev, f"entry {rev} is of an older term than the entry before it")


def _entry_header(entry: Sealed) -> EntryHeader:
    if digest_of(entry.header, entry.nonce, entry.sealed) != entry.digest:
        raise Broken(entry.rev, f"entry {entry.rev} is damaged: its digest does not match")
    try:
        return entry_header(entry)
    except msgspec.MsgspecError:
        raise Broken(entry.rev, f"entry {entry.rev} is damaged: its header cannot be read") from None


def check_snapshot(snapshot: Sealed, cluster: str) -> SnapshotHeader:
    """The header of a snapshot that is whole. Raises Broken."""
    rev = snapshot.rev
    if digest_of(snapshot.header, snapshot.nonce, snapshot.sealed) != snapshot.digest:
        raise Broken(rev, f"snapshot {rev} is damaged: its digest does not match")
    try:
        header = snapshot_header(snapshot)
    except msgspec.MsgspecError:
        raise Broken(rev, f"snapshot {rev} is damaged: its header cannot be read") from None
    if header.rev != rev or header.cluster != cluster:
        raise Broken(rev, f"snapshot {rev} is of another rev or cluster")
    return header


def check_mark(mark: Mark | None, chain: Chain, losses: int) -> None:
    """Raises Broken when the log ends before the last rev that was acknowledged since the last repair that lost some."""
    if mark is None or mark.losses < losses:
        return
    if mark.rev > chain.rev:
        raise Broken(chain.rev + 1, f"entries {chain.rev + 1} to {mark.rev} are missing: they were acknowledged and are gone")
    if mark.rev == chain.rev and mark.digest != chain.digest:
        raise Broken(chain.rev, f"entry {chain.rev} is not the one that was acknowledged")


def longest(chain: Chain, entries: Iterable[Sealed]) -> list[Sealed]:
    """The entries that follow `chain` without a break; it stands on the last one afterwards."""
    kept: list[Sealed] = []
    for entry in entries:
        try:
            chain.accept(entry)
        except Broken:
            break
        kept.append(entry)
    return kept
