"""What a node measures decides its timing."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod.errors import Invalid
from piccolod.leadership.timing import FAST, Measured, choose
from services.consensus.joining import measure


def test_this_machine_gets_the_profile_of_what_was_measured_and_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Measured] = []
    monkeypatch.setattr(measure, "choose", lambda measured: (seen.append(measured), choose(measured))[1])
    choice = measure.choice("auto", tmp_path)
    assert choice == choose(seen[0]) and seen[0].fsync_s > 0 and seen[0].rtt_s == 0
    assert choice.timing.stop_s == seen[0].stop_s > 0
    assert choice.why.startswith(choice.timing.profile) and "fsync" in choice.why
    assert not list(tmp_path.iterdir()), "the probe is gone"


def test_a_slow_disk_gets_a_slower_profile_unless_another_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "fsync_s", lambda _: 0.12)
    assert measure.choice("auto", tmp_path).timing.profile == "balanced"
    assert measure.choice("fast", tmp_path).timing.profile == "fast"


def test_in_an_etcd_of_an_owner_commits_count_and_not_the_disk_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "fsync_s", lambda _: 5.0)
    assert measure.choice("auto", tmp_path, 0.01).timing.profile == "balanced", "it elects for longer than fast bears"
    assert measure.choice("auto", tmp_path, 0.4).timing.profile == "patient"
    assert measure.choice("fast", tmp_path, 0.01).timing.profile == "fast"


def test_containers_that_die_slowly_are_refused_with_the_inequality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "stop_s", lambda: FAST.margin_s)
    with pytest.raises(Invalid, match="M >= F"):
        measure.choice("fast", tmp_path)
