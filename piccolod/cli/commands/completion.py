"""`piccoloctl completion`: the script that a shell reads once."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from piccolod.cli.options import Command

_VARIABLE = "_PICCOLOCTL_COMPLETE"


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print a script that completes commands, apps and modules.

    \b
    bash: piccoloctl completion bash > /etc/bash_completion.d/piccoloctl
    zsh:  piccoloctl completion zsh  > "${fpath[1]}/_piccoloctl"
    fish: piccoloctl completion fish > ~/.config/fish/completions/piccoloctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "piccoloctl", _VARIABLE).source())
    return 0
