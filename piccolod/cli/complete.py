"""Names for the shell's completion, asked of the running piccolod. Late or no answer: no names, and no message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from piccolod.cli.options import session_of

_BUDGET_S: Final = 0.3

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _names(path: str, name_of: Callable[[Any], str]) -> Completer:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        session = session_of(ctx)
        session.timeout_s = _BUDGET_S
        try:
            found = [name_of(item) for item in session.client().get(path)]
        except Exception:  # whatever it is: a message here would land in the middle of the person's line
            return []
        earlier = ctx.params.get(param.name or "")
        given = set(earlier) if isinstance(earlier, tuple) else set()
        return sorted(name for name in set(found) - given if name.startswith(incomplete))

    return complete


app_names = _names("/apps", lambda item: str(item["name"]))
module_names = _names("/modules", lambda item: str(item["name"]))
resource_names = _names("/leadership", lambda item: str(item["resource"]))
secret_names = _names("/secrets", lambda item: str(item["name"]))
image_names = _names("/images", lambda item: str((item["names"] or [item["id"]])[0]))
token_ids = _names("/auth/tokens", lambda item: str(item["id"]))
join_token_ids = _names("/cluster/tokens", lambda item: str(item["id"]))
node_names = _names("/nodes", lambda item: str(item["name"]))
listener_names = _names("/routes", lambda item: f"{item['app']}.{item['listener']}")
volume_names = _names("/volumes", lambda item: f"{item['app']}.{item['name']}")
