"""`piccoloctl`: every command in one table, and what happens when one fails.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 locked, 5 not leader, 6 no leader or store, 7 timeout, 8 invalid,
9 auth, 10 would change (`apps plan`, `cluster recover`), 130 interrupted. `health`: 0 OK, 1 WARN, 2 CRIT, 3 UNKNOWN.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from piccolod.cli.lazy import LazyGroup
from piccolod.cli.options import root_options, session_of
from piccolod.cli.refusal import Refusal, explain
from piccolod.cli.session import colours_wanted
from piccolod.errors import PiccoloError

INTERRUPTED: Final = 130

# What `--help` shows: section -> command -> (file in `commands`, one line).
SECTIONS: Final = {
    "See": {
        "status": ("status", "This node, its modules and its apps on one screen (the default)."),
        "ps": ("apps", "The apps: the same as `apps list`."),
        "logs": ("app_logs", "What an app writes: the same as `apps logs`."),
        "events": ("events", "What happened; -f goes on as it happens."),
        "why": ("leaders", "Why an app or the kernel is led where it is."),
        "health": ("health", "The judgement of each component. Exit code 0 OK, 1 WARN, 2 CRIT, 3 UNKNOWN."),
        "doctor": ("doctor", "Check this machine: what piccolod needs, and what it lacks."),
    },
    "Open and close the store": {
        "setup": ("crypto", "Set the first password."),
        "unlock": ("crypto", "Open the store with the password: apps may start and change."),
        "lock": ("crypto", "Close the store: nothing can be changed until it is unlocked."),
        "keys": ("keys", "Change the password; recovery words."),
    },
    "Work": {
        "apps": ("apps", "Install, change and remove apps."),
        "images": ("images", "Container images, without a registry too."),
        "secrets": ("secrets", "Values for apps that never come back out."),
        "volumes": ("volumes", "The apps' data."),
        "routes": ("routes", "Public ports and where they lead."),
        "leaders": ("leaders", "Who leads what, and moving it."),
    },
    "Run together": {
        "cluster": ("cluster", "Found a cluster, join, leave or recover it; tokens for new nodes."),
        "nodes": ("nodes", "The nodes of the cluster."),
    },
    "Run the node": {
        "modules": ("modules", "piccolod's own processes."),
        "store": ("store", "The sealed log under it all: revision, entries, check, repair."),
        "settings": ("settings", "Choices that are sealed in the store."),
        "tokens": ("tokens", "Access for programs."),
        "config": ("config", "The configuration file of this machine."),
        "api": ("api", "Call the HTTP API: METHOD PATH."),
        "completion": ("completion", "A script for the shell that completes commands and names."),
        "version": ("version", "The version of this program."),
    },
}


class Root(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read us has seen enough (`| head`). The rest of the output goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return code


@click.group(
    cls=Root,
    name="piccoloctl",
    sections=SECTIONS,
    params=root_options(),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Options may stand before or after the command. `piccoloctl COMMAND --help` tells more.",
)
@click.pass_context
def cli(ctx: click.Context) -> Any:
    """Looks at piccolod on this machine and tells it what to do."""
    ctx.color = colours_wanted()
    session_of(ctx)
    if ctx.invoked_subcommand is None:
        from piccolod.cli.commands.status import status

        return ctx.invoke(status)
    return None


def run(args: Sequence[str] | None = None) -> int:
    """The exit code; everything that goes wrong is told on stderr."""
    colour = colours_wanted()
    try:
        code = cli.main(args=args, prog_name="piccoloctl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (Refusal, PiccoloError) as failure:
        return tell(failure, colour)
    except OSError as error:
        click.echo(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), err=True)
        return 1
    return code if isinstance(code, int) else 0


def tell(failure: Refusal | PiccoloError, colour: bool | None) -> int:
    """Explains a failure on stderr; returns its exit code."""
    for line in explain(failure):
        word, colon, rest = line.partition(":")
        style = {"error": "red", "hint": "cyan", "request": "bright_black"}.get(word)
        styled = click.style(word + colon, fg=style, bold=word == "error") + rest if style else line
        click.echo(styled, err=True, color=colour)
    error = failure.error if isinstance(failure, Refusal) else failure
    return error.exit_code


def main() -> None:
    sys.exit(run())
