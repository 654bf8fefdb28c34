"""What every command and every event has in common.

A command is a `Request[Reply]`: a frozen struct with the name of the command and the type of its answer. An event is an
`Event`: a hint that something changed. Both are checked at the receiving edge; unknown fields are refused in commands
and ignored in events (an older module must understand a newer one's hint).
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Generic, TypeVar

import msgspec

Reply = TypeVar("Reply")


class Request(msgspec.Struct, Generic[Reply], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`command` is "service.verb"; the service is the module that is asked. `reply` is the type of the answer."""

    command: ClassVar[str]
    reply: ClassVar[type]


class Nothing(msgspec.Struct, frozen=True):
    """The answer of a command that has none."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """`type` names the topic, `key()` what it is about. A retained event is state: late joiners get the last one."""

    type: ClassVar[str]
    retained: ClassVar[bool] = True

    def key(self) -> str:
        return ""


class Level(StrEnum):
    OK = "OK"
    WARN = "WARN"
    ERROR = "ERROR"
