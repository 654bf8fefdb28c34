"""Golden scenarios: what happens, in words. After an intended change: `python -m tests.sim --scenario NAME > .../NAME/expect`."""

from __future__ import annotations

import pytest

from tests.sim.scenario import SCENARIOS, play


@pytest.mark.parametrize("name", sorted(folder.name for folder in SCENARIOS.iterdir()))
def test_it_happens_as_expected(name: str) -> None:
    assert play(name) == (SCENARIOS / name / "expect").read_text()
