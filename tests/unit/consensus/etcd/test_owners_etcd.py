"""What the owner of an etcd does, and its members see: certificates that come later or half, and alarms."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod.protocol.cluster import KnownMember
from services.consensus import access, members_file, owners_etcd, seed
from services.consensus.access import Access
from services.consensus.etcd.channel import Tls
from services.consensus.owners_etcd import OwnersEtcd
from tests.etcd import Authority, Cluster
from tests.unit.consensus.etcd.conftest import eventually
from tests.unit.consensus.etcd.member import GEN, House, Node, house, living
from tests.unit.consensus.etcd.test_external import section, told


async def founded(home: House, between: Authority) -> Node:
    """One member, on an etcd that asks for certificates. `between`: what nodes prove themselves to each other with."""
    node = Node(home.folder / "n1", 0, home.section)
    record = node.make(home.cluster, home.etcd)
    for name, source in zip(("ca.pem", "node.pem", "node.key"), (between.ca, *between.sign("n1")), strict=True):
        (node.paths.cluster / name).write_bytes(source.read_bytes())
    client = access.external(node.paths, node.config.etcd).client(2.0)
    try:
        await seed.put_gen(client, home.prefix, GEN)
        await seed.put_node(client, home.prefix, "n1", record)
    finally:
        await client.close()
    return node


def test_certificates_that_come_later_or_are_renewed_are_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners_etcd, "LOOK_S", 0.2)
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    files = {name: tmp_path / f"etcd.{name}" for name in ("ca", "cert", "key")}

    def give(authority: Authority) -> None:
        cert, key = authority.sign("n1")
        for name, source in zip(files, (ours.ca, cert, key), strict=True):
            files[name].write_bytes(source.read_bytes())

    with Cluster(1, ours) as etcd:
        named = "".join(f'{name} = "{file}"\n' for name, file in files.items())
        with house(etcd, f'[etcd]\nmode = "external"\nendpoints = ["https://{etcd.endpoints[0]}"]\n{named}') as home:

            async def main() -> None:
                give(ours)
                node = await founded(home, Authority(tmp_path / "cluster"))
                files["key"].unlink()
                async with living(node) as one:
                    await eventually(lambda: f"{files['key']}: No such file" in told(one), "it says what is missing")
                    assert not node.token()
                    give(theirs)
                    await eventually(lambda: "No such file" not in told(one), "it has found them")
                    give(ours)
                    await one.lead()
                    await eventually(lambda: told(one) == "", "it is well")

            asyncio.run(main())


def test_an_alarm_is_named_and_left_to_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners_etcd, "LOOK_S", 0.2)
    with Cluster(1, quota_bytes=4 << 20) as etcd, house(etcd, section(etcd)) as home:

        async def main() -> None:
            (node,) = await home.begin(1)
            async with living(node) as one:
                await one.lead()
                member = etcd.members[0]
                for number in range(8):
                    await asyncio.to_thread(member.ctl, "put", f"/big{number}", check=False, stdin="x" * 1_000_000)
                await eventually(lambda: "alarm NOSPACE on m0" in told(one), "it is named")
                assert told(one).startswith("ERROR")
                assert "NOSPACE" in await asyncio.to_thread(member.ctl, "alarm", "list"), "nobody here disarms it"
                await asyncio.to_thread(member.ctl, "del", "--prefix", "/big")
                revision = (await asyncio.to_thread(member.ctl, "get", "x", "-w", "json")).partition('"revision":')[2]
                await asyncio.to_thread(member.ctl, "compact", revision.partition(",")[0])
                await asyncio.to_thread(member.ctl, "defrag")
                await asyncio.to_thread(member.ctl, "alarm", "disarm")
                await eventually(lambda: "NOSPACE" not in told(one), "it is told no more")

        asyncio.run(main())


def test_half_of_a_renewal_is_never_taken_up() -> None:
    """A certificate without its key would close every channel; what is found counts once it was found twice."""
    first, half, whole = (
        Access(("10.0.0.1:2379",), Tls(b"ca", cert, key)) for cert, key in ((b"1", b"1"), (b"2", b"1"), (b"2", b"2"))
    )
    found = iter((first, half, whole, whole, whole))
    taken: list[Tls] = []
    client: Any = SimpleNamespace(renew=lambda _endpoints, tls: taken.append(tls))
    owners = OwnersEtcd(client, lambda: next(found), SimpleNamespace(info=lambda _event: None))
    for expected in ([first.tls], [first.tls], [first.tls], [first.tls, whole.tls], [first.tls, whole.tls]):
        asyncio.run(owners._renew())
        assert taken == expected


def test_other_members_are_noted_while_an_owners_certificates_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are his, and looked after elsewhere: what a member knows of the others hangs on no file of them."""
    monkeypatch.setattr(owners_etcd, "LOOK_S", 0.2)
    ours = Authority(tmp_path / "ours")
    cert, key = ours.sign("n1")
    with Cluster(1, ours) as etcd:
        named = f'ca = "{ours.ca}"\ncert = "{cert}"\nkey = "{key}"\n'
        with house(etcd, f'[etcd]\nmode = "external"\nendpoints = ["https://{etcd.endpoints[0]}"]\n{named}') as home:

            async def main() -> None:
                node = await founded(home, Authority(tmp_path / "cluster"))
                async with living(node) as one:
                    await one.lead()
                    client = access.external(node.paths, node.config.etcd).client(2.0)
                    key.unlink()
                    try:
                        other = KnownMember(address="10.77.0.2", client_url="", rpc="10.77.0.2:7444")
                        await seed.put_node(client, home.prefix, "n2", other)
                        await eventually(lambda: "n2" in members_file.read(node.paths), "it is noted")
                        await eventually(lambda: f"{key}: No such file" in told(one), "its health says what is missing")
                        assert not [event for event, _ in node.said if "cannot note the members" in event]
                    finally:
                        await client.close()

            asyncio.run(main())
