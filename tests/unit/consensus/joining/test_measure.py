"""What a node measures decides its timing."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piccolod.errors import Invalid, PiccoloError, Unavailable
from piccolod.leadership.timing import FAST, PATIENT, Measured, choose
from piccolod.protocol.apps import HardStop, MeasureHardStop
from services.consensus.joining import measure
from services.consensus.joining.measure import Stop

QUICK = Stop(0.02, "of a container")


def test_this_machine_gets_the_profile_of_what_was_measured_and_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Measured] = []
    monkeypatch.setattr(measure, "choose", lambda measured: (seen.append(measured), choose(measured))[1])
    choice = measure.choice("auto", tmp_path, Stop(0.02, "of a container"))
    assert choice.timing == choose(seen[0]).timing and seen[0].fsync_s > 0 and seen[0].rtt_s == 0
    assert choice.timing.stop_s == seen[0].stop_s == 0.02
    assert choice.why.startswith(choose(seen[0]).why) and "fsync" in choice.why
    assert choice.why.endswith("; F of a container, and no other node to measure a round trip to yet")
    assert not list(tmp_path.iterdir()), "the probe is gone"


def test_a_slow_disk_gets_a_slower_profile_unless_another_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "fsync_s", lambda _: 0.12)
    assert measure.choice("auto", tmp_path, QUICK).timing.profile == "balanced"
    assert measure.choice("fast", tmp_path, QUICK).timing.profile == "fast"


def test_in_an_etcd_of_an_owner_commits_count_and_not_the_disk_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "fsync_s", lambda _: 5.0)
    assert measure.choice("auto", tmp_path, QUICK, 0.01).timing.profile == "balanced", "it elects for longer than fast bears"
    assert measure.choice("auto", tmp_path, QUICK, 0.4).timing.profile == "patient"
    assert measure.choice("fast", tmp_path, QUICK, 0.01).timing.profile == "fast"


def test_containers_that_die_slowly_are_refused_with_the_inequality(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="M >= F"):
        measure.choice("fast", tmp_path, Stop(FAST.margin_s, "of a container"))


def module(answer: HardStop | PiccoloError) -> Any:
    async def call(request: MeasureHardStop, timeout_s: float) -> HardStop:
        if isinstance(answer, PiccoloError):
            raise answer
        return answer

    return SimpleNamespace(call=call, log=SimpleNamespace(warning=lambda *_, **__: None))


def test_the_end_of_a_container_counts_and_of_a_plain_process_where_there_is_none() -> None:
    assert asyncio.run(measure.hard_stop(module(HardStop(stop_s=0.07)))) == Stop(0.07, "of a container")
    found = asyncio.run(measure.hard_stop(module(Unavailable("podman does not run"))))
    assert 0 < found.stop_s < 1.0
    assert "of a plain process" in found.what and "podman does not run" in found.what


def test_a_node_that_joins_measures_its_way_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as near:
        port = near.getsockname()[1]
        took_s = measure.rtt_s([("127.0.0.1", port), ("127.0.0.1", 1)])
        assert 0 < took_s < 0.1, "who does not answer has no round trip"
        assert measure.shortfalls(PATIENT, QUICK, tmp_path, [("127.0.0.1", port)]) == ()
    monkeypatch.setattr(measure, "_round_trip_s", lambda host, _port: {"near": 0.001, "far": 0.03}[host])
    (found,) = measure.shortfalls(FAST, QUICK, tmp_path, [("near", 1), ("far", 1)])
    assert found == "E >= 10*rtt: 0.4 < 10*0.06 = 0.6", "doubled"
