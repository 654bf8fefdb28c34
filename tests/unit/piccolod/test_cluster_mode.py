"""The file that says whether a node is a member, and how the etcd of its cluster is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod import cluster_mode
from piccolod.cluster_mode import Mode
from piccolod.errors import Invalid


def test_a_member_is_what_it_entered_as_until_it_leaves(tmp_path: Path) -> None:
    assert cluster_mode.load(tmp_path) is None
    mode = Mode(cluster="c", node="n1", since_ms=1, etcd="external", rpc="10.77.0.1:7444")
    cluster_mode.enter(tmp_path, mode)
    assert cluster_mode.load(tmp_path) == mode and mode.is_external
    cluster_mode.leave(tmp_path)
    assert cluster_mode.load(tmp_path) is None


def test_one_of_before_external_etcds_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "mode").write_text('{"format":1,"mode":"etcd","cluster":"c","node":"n1","since_ms":1}')
    found = cluster_mode.load(tmp_path)
    assert found == Mode(cluster="c", node="n1", since_ms=1) and found is not None and not found.is_external


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"cluster":"c","node":"n1","since_ms":1,"etcd":"borrowed"}',
        '{"format":2,"cluster":"c","node":"n","since_ms":1}',
    ],
)
def test_what_is_none_of_ours_is_no_mode(tmp_path: Path, text: str) -> None:
    (tmp_path / "mode").write_text(text)
    with pytest.raises(Invalid):
        cluster_mode.load(tmp_path)
