"""`piccoloctl apps`, `ps`: what is installed, and starting and stopping it."""

from __future__ import annotations

from typing import Any, Final

import click

from piccolod.cli import app_view
from piccolod.cli.client import path_of
from piccolod.cli.complete import app_names
from piccolod.cli.options import Command, Group
from piccolod.cli.session import Printed, Session
from piccolod.cli.sheet import sheet
from piccolod.cli.wait import is_up, until_gone, until_reached, until_settled

SECTIONS = {
    "Manifests": {
        "install": ("manifests", "Install a new app from FILE."),
        "apply": ("manifests", "Install or change an app so that it is as FILE says."),
        "plan": ("manifests", "What `apply` would do; exit code 10 if anything."),
        "validate": ("manifests", "Check FILE; every mistake with its line."),
        "schema": ("manifests", "The JSON Schema of manifests, for editors."),
    },
    "Apps": {
        "list": ("apps", "All apps and their states."),
        "show": ("apps", "One app in full."),
        "logs": ("app_logs", "What an app writes."),
        "start": ("apps", "Start an app."),
        "stop": ("apps", "Stop an app until it is started again."),
        "restart": ("apps", "Stop and start an app."),
        "enable": ("apps", "Start it by itself after a boot."),
        "disable": ("apps", "Do not start it by itself after a boot."),
        "move": ("apps", "Let another node run an app."),
        "update": ("apps", "Go to another image, or look the same tag up again."),
        "revert": ("apps", "Go back to the manifest and image before the last change."),
        "uninstall": ("apps", "Remove an app."),
    },
}

# apps.md: the new image has 2 minutes to get healthy by default; fetching it comes before.
_TRIAL_S: Final = 300.0

apps = Group("apps", sections=SECTIONS, help="Install, change and remove apps.")

_name = click.argument("name", shell_complete=app_names)


def _look(session: Session) -> Printed:
    return Printed(session.client().get("/apps"), app_view.as_table, app_view.names)


@click.command("list", cls=Command, view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """All apps and their states."""
    return session.show(lambda: _look(session))


@click.command(cls=Command, view=True)
@click.pass_obj
def ps(session: Session) -> int:
    """All apps and their states: the same as `apps list`."""
    return session.show(lambda: _look(session))


@click.command(cls=Command, view=True)
@_name
@click.pass_obj
def show(session: Session, name: str) -> int:
    """One app in full."""

    def table(app: dict[str, Any], _wide: bool, width: int) -> str:
        return sheet({**app, "address": app_view.addresses(app)}, width)

    return session.show(lambda: Printed(session.client().get(path_of("apps", name)), table, lambda app: [str(app.get("name"))]))


def written(
    session: Session, changed: dict[str, Any], *, goal: str = "up", generation: int = 0, patience_s: float | None = None
) -> int:
    """Waits for what was committed, prints the app, and says how it went.

    `goal`: up, down or any. `generation`: the one to wait for, when it is not the one of the answer.
    """
    app = changed["app"]
    for warning in changed.get("warnings") or ():
        session.say(f"warning: {warning}")
    if not session.wait:
        session.say("committed; the app follows: `piccoloctl apps show` tells how far it is")
    else:
        try:
            app = until_settled(session, app, generation, patience_s)
        except KeyboardInterrupt:
            session.say(f"\nleft alone, it goes on: `piccoloctl apps show {app['name']}`")
            raise
    session.write(Printed(app, lambda found, _wide, _width: app_view.sentence(found), lambda found: [str(found.get("name"))]))
    if not session.wait or goal == "any":
        return 0
    wanted_down = goal == "down" or app.get("desired") == "stopped"
    well = app.get("state") == "stopped" if wanted_down else is_up(app)
    if app.get("state") == "failed":
        session.say(f"hint: `piccoloctl logs {app.get('name')}` shows what it wrote")
    elif not well:
        session.say("hint: it goes on by itself as soon as that is mended")
    deaf = [] if wanted_down else app_view.unbound(app)
    for listener in deaf:
        session.say(f"error: {listener} is not bound: nothing reaches it until the port is free, or another one is chosen")
    return 0 if well and not deaf else 1


def _change(session: Session, name: str, action: str, goal: str) -> int:
    return written(session, session.client().send("POST", path_of("apps", name, action)), goal=goal)


@click.command(cls=Command, waits=True)
@_name
@click.pass_obj
def start(session: Session, name: str) -> int:
    """Start an app, and wait until it answers."""
    return _change(session, name, "start", "up")


@click.command(cls=Command, waits=True)
@_name
@click.pass_obj
def stop(session: Session, name: str) -> int:
    """Stop an app until it is started again."""
    return _change(session, name, "stop", "down")


@click.command(cls=Command, waits=True)
@_name
@click.pass_obj
def restart(session: Session, name: str) -> int:
    """Stop and start an app."""
    return _change(session, name, "restart", "up")


@click.command(cls=Command, waits=True)
@_name
@click.pass_obj
def enable(session: Session, name: str) -> int:
    """Start an app by itself after a boot."""
    code = _change(session, name, "enable", "any")
    session.say("it starts by itself after a boot")
    return code


@click.command(cls=Command, waits=True)
@_name
@click.pass_obj
def disable(session: Session, name: str) -> int:
    """Do not start an app by itself after a boot. What runs now goes on."""
    code = _change(session, name, "disable", "any")
    session.say("it does not start by itself after a boot; what runs now goes on")
    return code


_snapshot = click.option("--without-snapshot", is_flag=True, help="Go on although its volumes cannot be set back afterwards.")

_consent = click.option("--allow-privileged", is_flag=True, help="Agree to an app that is as good as the whole machine.")


@click.command(cls=Command, waits=True)
@_name
@click.option("--image", default="", help="The image to go to; without it the manifest's tag is looked up again.")
@_snapshot
@_consent
@click.pass_obj
def update(session: Session, name: str, image: str, without_snapshot: bool, allow_privileged: bool) -> int:
    """Go to another image. If the new one does not get healthy in time, the old one comes back."""
    before = session.client().get(path_of("apps", name))
    body = {"image": image, "without_snapshot": without_snapshot}
    changed = session.client().send("POST", path_of("apps", name, "update", consent=allow_privileged), body)
    generation = changed["app"]["generation"]
    if generation == before["generation"]:
        session.say(f"{name} has that image already")
        return written(session, changed)
    # Won or lost, the trial ends with one more generation; until then what is shown may be the old one, running.
    code = written(session, changed, generation=generation + 1, patience_s=_TRIAL_S)
    if not session.wait:
        return code
    after = session.client().get(path_of("apps", name))
    if after["image_id"] == before["image_id"]:
        session.say("error: it went back to the image that it had before")
        return 1
    session.say(f"its image was {before['image']} ({_short(before)}), now {after['image']} ({_short(after)})")
    return code


def _short(app: dict[str, Any]) -> str:
    return str(app["image_id"]).removeprefix("sha256:")[:12]


@click.command(cls=Command, waits=True)
@_name
@_snapshot
@_consent
@click.pass_obj
def revert(session: Session, name: str, without_snapshot: bool, allow_privileged: bool) -> int:
    """Go back to the manifest and image before the last change."""
    path = path_of("apps", name, "revert", consent=allow_privileged)
    return written(session, session.client().send("POST", path, {"without_snapshot": without_snapshot}))


@click.command(cls=Command, waits=True)
@_name
@click.option("--to", default="", metavar="NODE", help="The node that should run it; without it, the best one.")
@click.pass_obj
def move(session: Session, name: str, to: str) -> int:
    """Let another node run an app, and wait until it answers there. Its clients wait meanwhile, whichever node they ask."""
    moved = session.client().send("POST", path_of("leadership", f"app:{name}", "switchover"), {"to": to})
    if not session.wait:
        session.say(f"{moved['node']} leads {name}, and starts it: `piccoloctl apps show {name}`")
        return 0
    node, waited_ms = until_reached(session, name, moved)
    session.say(f"{name} runs on {node}" + (f"; its clients waited {waited_ms / 1000:.2f} s" if waited_ms else ""))
    return 0


@click.command(cls=Command, waits=True)
@_name
@click.option("--purge", is_flag=True, help="Delete its volumes as well, for ever.")
@click.pass_obj
def uninstall(session: Session, name: str, purge: bool) -> int:
    """Remove an app. Its volumes stay, unless --purge."""
    volumes = [item["name"] for item in session.client().get(path_of("apps", name))["volumes"] if item["kind"] == "persistent"]
    data = f" and delete its data ({', '.join(volumes)})" if purge and volumes else ""
    session.confirm(f"Uninstall {name}{data}?")
    session.client().send("DELETE", path_of("apps", name, purge=purge))
    if session.wait:
        until_gone(session, name)
        session.say(f"{name} is gone" + (f"; its data is kept: {', '.join(volumes)}" if volumes and not purge else ""))
    return 0
