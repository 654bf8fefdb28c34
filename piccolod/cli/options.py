"""The options of every command: taken before the command and after it, with the same meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from piccolod.cli.lazy import LazyGroup
from piccolod.cli.session import DEFAULT_SOCKET, Form, Session
from piccolod.units import parse_duration

if TYPE_CHECKING:
    _Seconds = click.ParamType[float]
else:
    _Seconds = click.ParamType  # generic only from click 8.2 on


class Duration(_Seconds):
    """`30`, `30s`, `2m`: seconds as float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            seconds = parse_duration(text if not text.replace(".", "", 1).isdecimal() else f"{text}s")
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail(f"{text!r} must be above zero", param, ctx)
        return seconds


def session_of(ctx: click.Context) -> Session:
    root = ctx.find_root()
    if root.obj is None:
        root.obj = Session()
    session: Session = root.obj
    return session


def _keep(field: str, *, invert: bool = False) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Stores what was given; what was not given changes nothing, so that the place on the line does not matter."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value not in (None, False) and not _outdone(ctx, field):
            setattr(session_of(ctx), field, not value if invert else value)
            if field == "socket" and _on_the_line(ctx, "socket"):
                session_of(ctx).url = ""
        return value

    return callback


def _on_the_line(ctx: click.Context, field: str) -> bool:
    return ctx.get_parameter_source(field) is ParameterSource.COMMANDLINE


def _outdone(ctx: click.Context, field: str) -> bool:
    """PICCOLO_URL by a socket on the line: what is on the line is looked at first."""
    return field == "url" and _on_the_line(ctx, "socket") and not _on_the_line(ctx, "url")


def _option(
    *names: str, field: str, help: str, flag: bool = False, hidden: bool = False, invert: bool = False, **more: Any
) -> click.Option:
    kept = _keep(field, invert=invert)
    return click.Option(
        names,
        is_flag=flag,
        default=False if flag else None,
        callback=kept,
        expose_value=False,
        help=help,
        hidden=hidden,
        **more,
    )


def common(*, root: bool) -> list[click.Parameter]:
    """`root`: the options before the command, which also know their variables."""
    hidden = not root

    def variable(name: str) -> dict[str, Any]:
        return {"envvar": name, "show_envvar": True} if root else {}

    forms = click.Choice([form.value for form in Form])

    def form(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            session_of(ctx).form = Form(value)
        return value

    return [
        _option("--url", field="url", help="piccolod's HTTP address", metavar="URL", hidden=hidden, **variable("PICCOLO_URL")),
        _option(
            "--socket",
            field="socket",
            help=f"piccolod's unix socket, {DEFAULT_SOCKET} by default",
            metavar="PATH",
            hidden=hidden,
            **variable("PICCOLO_SOCKET"),
        ),
        _option(
            "--token",
            field="token",
            help="for --url; better in the variable, where other users cannot read it",
            metavar="TOKEN",
            hidden=hidden,
            **variable("PICCOLO_TOKEN"),
        ),
        _option("--no-redirect", field="redirect", invert=True, flag=True, help="do not follow to the leader", hidden=hidden),
        click.Option(
            ["-o", "--output"],
            type=forms,
            default=None,
            callback=form,
            expose_value=False,
            help="how results are written; json is the API's object as it is",
        ),
        _option("-q", "--quiet", field="quiet", flag=True, help="results and errors only"),
        _option("-y", "--yes", field="yes", flag=True, help="do not ask", hidden=hidden),
        _option(
            "--timeout",
            field="timeout_s",
            type=Duration(),
            metavar="TIME",
            help="how long to wait for the result, as 30s or 2m (60s by default)",
        ),
    ]


def _watching(*, hidden: bool = False) -> click.Option:
    return _option("-w", "--watch", field="watch", flag=True, help="show it again when it changes, until Ctrl-C", hidden=hidden)


def _waiting(*, hidden: bool = False) -> click.Option:
    help = "return at once instead of waiting for the result"
    return _option("--no-wait", field="wait", invert=True, flag=True, help=help, hidden=hidden)


class Command(click.Command):
    """`view`: it shows something, so -w makes sense. `waits`: it waits for a result, so --no-wait does."""

    def __init__(self, *args: Any, view: bool = False, waits: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.view = view
        taken = {name for param in self.params for name in param.opts}
        more = [*common(root=False), *([_watching()] if view else []), *([_waiting()] if waits else [])]
        self.params += [param for param in more if not taken & set(param.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        if session_of(ctx).watch and not self.view:
            raise click.UsageError("-w is for what shows something.", ctx)
        return super().invoke(ctx)


class Group(LazyGroup):
    """A group whose commands take the options of every command."""

    command_class = Command


def root_options() -> list[click.Parameter]:
    return [*common(root=True), _watching(), _waiting()]
