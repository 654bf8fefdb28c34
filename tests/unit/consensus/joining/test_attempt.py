"""What a join that did not come to its end leaves for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from piccolod.paths import Paths
from piccolod.pki import token as tokens
from services.consensus.joining.attempt import AttemptFile


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(state=tmp_path / "state", run=tmp_path / "run")
    paths.consensus.mkdir(parents=True)
    return paths


def test_the_same_join_again_has_the_same_key_and_names_the_member_that_is_spent(paths: Paths) -> None:
    token = tokens.issue("0" * 64)
    first = AttemptFile(paths).begin(token, "n2")
    assert (first.spent, AttemptFile(paths).begin(token, "n2")) == (0, first)
    AttemptFile(paths).spend(first, 2**64 - 1)
    again = AttemptFile(paths).begin(token, "n2")
    assert (again.key, again.spent) == (first.key, 2**64 - 1)


def test_another_token_or_another_name_is_another_join(paths: Paths) -> None:
    token = tokens.issue("0" * 64)
    first = AttemptFile(paths).begin(token, "n2")
    assert AttemptFile(paths).begin(token, "n3").key != first.key
    assert AttemptFile(paths).begin(tokens.issue("0" * 64), "n3").key != first.key


def test_the_key_is_for_root_alone_and_goes_once_this_node_is_a_member(paths: Paths) -> None:
    attempts = AttemptFile(paths)
    attempts.begin(tokens.issue("0" * 64), "n2")
    (file,) = paths.consensus.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    attempts.forget()
    attempts.forget()
    assert list(paths.consensus.iterdir()) == []


def test_a_file_that_is_damaged_is_no_attempt(paths: Paths) -> None:
    token = tokens.issue("0" * 64)
    first = AttemptFile(paths).begin(token, "n2")
    (file,) = paths.consensus.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert AttemptFile(paths).begin(token, "n2").key != first.key
