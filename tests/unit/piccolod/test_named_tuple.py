from __future__ import annotations

import pickle
import typing

import pytest

from piccolod import named_tuple


class Ours(named_tuple.NamedTuple):
    """A point."""

    x: int
    y: int = 7

    @property
    def sum(self) -> int:
        return self.x + self.y

    def moved(self, by: int) -> Ours:
        return self._replace(x=self.x + by)


class Theirs(typing.NamedTuple):
    """A point."""

    x: int
    y: int = 7


def test_it_is_what_typing_would_have_made() -> None:
    assert Ours(1) == Theirs(1) == (1, 7)
    assert Ours.__mro__[1:] == Theirs.__mro__[1:] == (tuple, object)
    assert repr(Ours(1, y=2)) == repr(Theirs(1, y=2)).replace("Theirs", "Ours")
    for name in ("_fields", "_field_defaults", "__doc__", "__module__", "__match_args__"):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)


def test_it_has_its_properties_and_methods() -> None:
    assert Ours(1).sum == 8
    assert Ours(1).moved(2) == Ours(3, 7)
    assert pickle.loads(pickle.dumps(Ours(1))) == Ours(1)


def test_a_field_too_few_or_too_many_is_refused() -> None:
    for arguments in ((), (1, 2, 3)):
        with pytest.raises(TypeError):
            Ours(*arguments)
