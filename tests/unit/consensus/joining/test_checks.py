"""Who cannot become a member: each refusal has its own message."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod import cluster_mode, config
from piccolod.config import Config
from piccolod.errors import Conflict, Exists, Invalid, Locked, PiccoloError, Unavailable
from piccolod.leadership import leash_table
from piccolod.protocol.persistence import CryptoStatus
from services.consensus.joining import checks

EXTERNAL = '[etcd]\nmode = "external"\nendpoints = ["http://127.0.0.1:2379"]'


def node(folder: Path, address: str = "10.77.0.1", extra: str = "") -> Config:
    parsed = config.parse(f'[node]\nname="n1"\naddress="{address}"\nstate_dir="{folder}/s"\nrun_dir="{folder}/r"\n{extra}')
    parsed.paths.leash.mkdir(parents=True)
    return parsed


def status(initialized: bool = True, locked: bool = False) -> CryptoStatus:
    return CryptoStatus(initialized=initialized, locked=locked, has_recovery=False, keyset_version=1, cluster_id="c", reason="")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
def test_an_address_that_others_cannot_reach_founds_nothing(tmp_path: Path, address: str) -> None:
    with pytest.raises(Invalid, match=address) as refusal:
        checks.may_found_or_join(node(tmp_path, address))
    assert "node.address" in refusal.value.hint


def test_without_etcd_here_only_one_of_an_owner_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="etcd is not installed"):
        checks.may_found_or_join(node(tmp_path / "a"))
    checks.may_found_or_join(node(tmp_path / "b", extra=EXTERNAL))


def test_a_witness_has_nothing_to_vote_in_where_its_owner_keeps_etcd(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="it has no vote") as refusal:
        checks.may_be("witness", node(tmp_path / "a", extra=EXTERNAL))
    assert "--witness" in refusal.value.hint
    checks.may_be("member", node(tmp_path / "b", extra=EXTERNAL))
    checks.may_be("witness", node(tmp_path / "c"))


def test_a_member_neither_founds_nor_joins_again(tmp_path: Path) -> None:
    settings = node(tmp_path)
    checks.may_found_or_join(settings)
    cluster_mode.make_folder(settings.paths.cluster)
    cluster_mode.enter(settings.paths.cluster, cluster_mode.Mode(cluster="c-1", node="n1", since_ms=1))
    with pytest.raises(Exists, match="c-1"):
        checks.may_found_or_join(settings)


@pytest.mark.parametrize(
    ("found", "kind", "hint"),
    [(status(initialized=False, locked=True), Conflict, "setup"), (status(locked=True), Locked, "unlock")],
)
def test_only_an_open_store_founds_a_cluster(found: CryptoStatus, kind: type[PiccoloError], hint: str) -> None:
    with pytest.raises(kind) as refusal:
        checks.may_found(found)
    assert hint in refusal.value.hint
    checks.may_found(status())


def test_a_store_of_its_own_is_given_up_only_when_told_to(tmp_path: Path) -> None:
    settings = node(tmp_path)
    with pytest.raises(Conflict) as refusal:
        checks.may_give_up_data(settings, status(locked=True), False)
    assert "--discard-local" in refusal.value.hint
    checks.may_give_up_data(settings, status(locked=True), True)
    checks.may_give_up_data(settings, status(initialized=False, locked=True), False)


def test_apps_that_run_are_never_given_up(tmp_path: Path) -> None:
    import os

    settings = node(tmp_path)
    leash_table.write(settings.paths.leash, leash_table.entry_of("piccolo-hello", "app:hello", 1, 1, pid=os.getpid()))
    with pytest.raises(Conflict, match="piccolo-hello"):
        checks.may_give_up_data(settings, status(initialized=False), True)
