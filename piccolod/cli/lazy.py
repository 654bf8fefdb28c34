"""Groups that import a command's file only when that command is asked for: a start costs one file, not all of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """`sections` is the help page: title -> command -> (file below `piccolod.cli.commands`, one line of help).

    A command `a-b` of file `f` is the function `a_b` in it, or `a_b_` where Python has that name already.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, tuple[str, str]]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections or {}

    def _place(self, name: str) -> tuple[str, str] | None:
        return next((commands[name] for commands in self.sections.values() if name in commands), None)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(name for part in self.sections.values() for name in part)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._place(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"piccolod.cli.commands.{place[0]}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, f"{name}_", None) or getattr(module, name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            suggestion = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{suggestion}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.sections:
            super().format_commands(ctx, formatter)
        width = max((len(name) for part in self.sections.values() for name in part), default=0)
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in commands.items()])
