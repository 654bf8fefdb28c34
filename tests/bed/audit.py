"""What the members' own files hold, read from outside with the password: nothing acknowledged is lost, nothing is invented."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from functools import cache
from pathlib import Path

import msgspec

from services.api import settings
from services.persistence import keyset as keysets
from services.persistence.entry import Sealed, open_entry
from services.persistence.log import LogReader
from services.persistence.secret import SecretKey
from tests.bed.cluster import Cluster
from tests.bed.storm import Acknowledged, Storm
from tests.node import PASSWORD

Log = dict[int, tuple[str, str]]  # rev -> digest, title that it wrote ("" where it wrote none)


def problems(cluster: Cluster, storm: Storm) -> list[str]:
    """Of a cluster in which nothing is being written."""
    return judge({machine.name: _read(machine.state) for machine in cluster.machines}, storm.acknowledged, storm.tried)


def judge(logs: Mapping[str, Log], acknowledged: Iterable[Acknowledged], tried: Set[str]) -> list[str]:
    """What is wrong with what the members hold, after these answers to these writes. Pure."""
    whole: Log = {}
    found = []
    for name, log in logs.items():
        for rev, entry in log.items():
            if whole.setdefault(rev, entry) != entry:
                found.append(f"{name} has another rev {rev} than the others: {entry}, {whole[rev]}")
    for each in acknowledged:
        written = whole.get(each.rev, ("", "nothing"))[1]
        if written != each.title:
            found.append(f"acknowledged and lost: {each.title!r} at rev {each.rev}, where {written!r} is")
    titles = Counter(title for _, title in whole.values() if title.startswith("storm-"))
    found += [f"written {count} times: {title!r}" for title, count in titles.items() if count > 1]
    found += [f"nobody asked for {title!r}" for title in titles if title not in tried]
    missing = sorted(set(range(min(whole, default=1), max(whole, default=0) + 1)) - whole.keys())
    found += [f"no member has rev {rev}" for rev in missing]
    return found


def _read(state: Path) -> Log:
    key = _key((state / "store" / "keyset.json").read_bytes())
    log = {}
    for entry in entries(state):
        titles = [
            msgspec.msgpack.decode(op.document).get("title", "")
            for op in open_entry(key.cipher, entry)
            if (op.collection, op.id) == (settings.COLLECTION, settings.ID)
        ]
        log[entry.rev] = entry.digest.hex(), titles[-1] if titles else ""
    return log


def entries(state: Path) -> list[Sealed]:
    """What a machine's file holds, read from a copy: SQLite does not find the way into another mount namespace."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("control.db", "control.db-wal"):
            if (state / "store" / name).exists():
                shutil.copyfile(state / "store" / name, Path(folder, name))
        reader = LogReader(Path(folder, "control.db"))
        try:
            return list(reader.entries())
        finally:
            reader.close()


@cache
def _key(text: bytes) -> SecretKey:
    """Once a keyset: the password takes half a second of a processor."""
    keyset = keysets.decode(text)
    assert keyset is not None, "a keyset that is whole"
    return keysets.open_by_password(keyset, PASSWORD)
