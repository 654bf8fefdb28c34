"""Asks the supervisor, which has no bus: one JSON line each way over its control socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from piccolod.errors import DeadlineExceeded, Unavailable, from_wire

_LINE_BYTES: Final = 4 * 1024 * 1024


async def ask(socket: Path, request: dict[str, Any], timeout_s: float = 5.0) -> Any:
    """The answer's result. Raises what the supervisor refused, or Unavailable when it does not answer."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_LINE_BYTES)
            try:
                writer.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        raise DeadlineExceeded(f"the supervisor did not answer within {timeout_s:g} s", hint="try again") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"the supervisor cannot be asked: {error}", hint="try again") from error
    return _answer(line)


def _answer(line: bytes) -> Any:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unavailable("the supervisor gave no answer", hint="try again")
    if isinstance(error := answer.get("error"), dict):
        raise from_wire(error)
    return answer.get("result")
