"""What is known of the call that is being answered. One object a request, in the scope's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.api.actor import NOBODY, Actor
from services.api.origin import Origin


@dataclass(slots=True)
class Call:
    request_id: str
    origin: Origin
    actor: Actor = NOBODY
    code: str = ""  # of the error, for the audit


def call_of(connection: Any) -> Call:
    """The call of a litestar request."""
    call: Call = connection.scope["state"]["call"]
    return call
