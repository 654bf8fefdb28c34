"""`piccoloctl cluster`: several machines as one."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from piccolod import clock
from piccolod.cli.client import Client, path_of
from piccolod.cli.commands import tokens as access
from piccolod.cli.commands.leaders import resource_of
from piccolod.cli.commands.nodes import COLUMNS as NODES
from piccolod.cli.complete import join_token_ids, resource_names
from piccolod.cli.options import Duration, Group
from piccolod.cli.refusal import Refusal
from piccolod.cli.session import WOULD_CHANGE, Printed, Session
from piccolod.cli.table import Column, printable, render, table
from piccolod.cli.times import moment
from piccolod.errors import (
    Conflict,
    DeadlineExceeded,
    NoLeader,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    PiccoloError,
    StoreUnavailable,
)

cluster = Group("cluster", help="Several machines as one.")
tokens = Group("tokens", help="What lets new nodes in: one token a node, for a short time.")
cluster.add_command(tokens)

_TOKENS_PATH: Final = "/cluster/tokens"
_LOOK_S: Final = 0.2
# The API gives a join so long: the member answers within 45 s, and etcd here may take 30 s to start.
_JOIN_S: Final = 120.0
_LEAVE_S: Final = 90.0
_NEW_LEADER_S: Final = 10.0
_PASSING: Final = (NoLeader, NotLeader, StoreUnavailable, OutcomeUnknown)
_RECOVER_S: Final = 150.0


def _phases(change: dict[str, Any]) -> str:
    return ", ".join(f"{name} {float(took):.0f} ms" for name, took in (change.get("phases") or {}).items())


_TOKENS: Final = (
    Column("ID", lambda item: item.get("id")),
    Column("STATE", lambda item: item.get("state"), state=True),
    Column("ROLE", lambda item: item.get("role")),
    Column("NODE", lambda item: item.get("node")),
    Column("EXPIRES", lambda item: moment(int(item.get("expires_ms") or 0))),
    Column("CREATED", lambda item: moment(int(item.get("created_ms") or 0)), wide=True),
    Column("CREATED BY", lambda item: item.get("author"), wide=True),
)

_CHANGES: Final = (
    Column("TIME", lambda item: moment(int(item.get("at_ms") or 0))),
    Column("RESOURCE", lambda item: item.get("resource")),
    Column("EPOCH", lambda item: item.get("epoch")),
    Column("FROM", lambda item: item.get("from_node")),
    Column("TO", lambda item: item.get("to_node")),
    Column("REASON", lambda item: item.get("reason")),
    Column("PHASES", _phases),
)


@cluster.command("list", view=True)
@click.pass_obj
def list_(session: Session) -> int:
    """The members, who leads, and what they lack together."""
    return session.show(lambda: _printed(session.client().get("/cluster")))


@cluster.command(waits=True)
@click.option(
    "--profile", type=click.Choice(["auto", "fast", "balanced", "patient"]), default=None,
    help="How fast a lost node is noticed; by default as the configuration says (auto: the fastest that holds here).",
)  # fmt: skip
@click.option(
    "--auto-unlock", type=click.Choice(["peers", "never"]), default="peers", show_default=True,
    help="Whether the other members unlock one that restarts; later: `settings set auto_unlock=never`.",
)  # fmt: skip
@click.pass_obj
def init(session: Session, profile: str | None, auto_unlock: str) -> int:
    """Make this node the first member of a cluster. What it has stays: users, settings, apps and their data."""
    session.say("founding a cluster: the store's log moves into etcd")
    body = {"auto_unlock": auto_unlock} | ({"profile": profile} if profile else {})
    found = session.client().send("POST", "/cluster/init", body, repeat=False)
    _say_notes(session, found)
    session.write(_printed(_until_led(session, found)))
    session.say("hint: `piccoloctl cluster tokens create` makes what the next node needs to join")
    return 0


@cluster.command(waits=True)
@click.argument("address")
@click.option("--token", "join_token", required=True, metavar="TOKEN", help="What `cluster tokens create` printed on a member.")
@click.option("--witness", is_flag=True, help="This node only votes: it gets no keys and runs no apps.")
@click.option("--discard-local", is_flag=True, help="Set a store that this node has of its own aside, and take the cluster's.")
@click.pass_obj
def join(session: Session, address: str, join_token: str, witness: bool, discard_local: bool) -> int:
    """Make this node a member of the cluster that the member at ADDRESS (HOST or HOST:PORT) is in."""
    if discard_local:
        session.confirm("Set this node's own store aside? The data of its apps cannot be read without it.")
    session.timeout_s = session.timeout_s or _JOIN_S
    role = "witness" if witness else "member"
    session.say(f"joining by {address}: it lets this node in")
    body = {"address": address, "token": join_token, "role": role, "discard_local": discard_local}
    found = session.client().send("POST", "/cluster/join", body, repeat=False)
    _say_notes(session, found)
    session.write(_printed(_until_led(session, found)))
    if not witness:
        session.say("hint: the members open the store here within seconds (auto_unlock), or `piccoloctl unlock` does")
    return 0


@cluster.command()
@click.option("--force", is_flag=True, help="Also where the cluster does not answer: for a node that it has taken out already.")
@click.pass_obj
def leave(session: Session, force: bool) -> int:
    """Take this node out, and make it a node alone again: locked and empty, its store set aside."""
    session.confirm("Leave the cluster? This node forgets the cluster's store and keys.")
    session.timeout_s = session.timeout_s or _LEAVE_S
    client = session.client()
    if not force:
        found = client.get("/cluster")
        members = {str(each["node"]): each for each in found["members"]}
        own = members.get(str(found["node"]))
        if own is not None and not found["out"]:
            if own["leads_kernel"]:
                _hand_kernel_over(session, str(own["node"]))
            session.say("the others take this node out")
            _take_out(client, str(own["node"]))
    session.say("its apps stop, its store is locked and set aside")
    client.send("POST", "/cluster/leave", {"force": force}, repeat=False)
    session.say("this node is alone: `piccoloctl setup` sets a password, `piccoloctl cluster join` makes it a member again")
    return 0


@cluster.command(waits=True)
@click.option(
    "--force", is_flag=True, help="Do it. Without it, only say what would be, and change nothing of the cluster (exit code 10)."
)
@click.pass_obj
def recover(session: Session, force: bool) -> int:
    """Begin the cluster anew with this node alone, whose etcd is lost for good or came from a backup. Others join again."""
    session.timeout_s = session.timeout_s or _RECOVER_S
    session.say("asking the other members what they have" + ("; then what they may still do runs out first" if force else ""))
    found = session.client().send("POST", "/cluster/recover", {"force": force}, repeat=not force)
    session.write(Printed(found, _recovery, lambda document: [str(document["node"])]))
    if not force:
        session.say(
            "nothing of the cluster was changed: `piccoloctl cluster recover --force` does it, once the others are off for good"
        )
        return WOULD_CHANGE
    if session.wait:
        _until_led(session, {})
    session.say(f"{printable(str(found['node']))} is the cluster now; `piccoloctl cluster tokens create` lets others join")
    return 0


@cluster.command()
@click.pass_obj
def pause(session: Session) -> int:
    """Let nothing move between nodes, neither by itself nor by request: for work on the machines. What runs, runs on."""
    session.client().request("POST", "/cluster/pause")
    session.say("nothing moves until `piccoloctl cluster resume`; a node that is lost is not replaced meanwhile")
    return 0


@cluster.command()
@click.pass_obj
def resume(session: Session) -> int:
    """End a pause."""
    session.client().request("POST", "/cluster/resume")
    session.say("nodes take over from each other again")
    return 0


@cluster.command(view=True)
@click.option("-n", "--tail", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many of the last.")
@click.argument("resource", metavar="[RES]", required=False, shell_complete=resource_names)
@click.pass_obj
def history(session: Session, tail: int, resource: str | None) -> int:
    """Who led what, since when and why, newest first; of one resource, or of all."""
    path = path_of("leadership", "history", limit=tail, resource=resource_of(resource) if resource else None)

    return session.show(
        lambda: Printed(
            session.client().get(path),
            table(_CHANGES, "Nothing has been led yet."),
            lambda found: [f"{each['resource']}@{each['epoch']}" for each in found],
        )
    )


def _recovery(found: dict[str, Any], wide: bool, width: int) -> str:
    rev, at_ms = found.get("rev"), int(found.get("at_ms") or 0)
    verb = "begins" if found.get("done") else "would begin"
    lines = [f"the cluster {verb} anew on {printable(str(found.get('node')))} with rev {rev}, of {moment(at_ms)}"]
    lines += [f"lost: {printable(str(each))}" for each in found.get("lost") or ()]
    return "\n".join(lines)


def _say_notes(session: Session, found: dict[str, Any]) -> None:
    for note in found.get("notes") or ():
        session.say(printable(str(note)))


def _hand_kernel_over(session: Session, node: str) -> None:
    """Who leads takes nobody out but others. Raises Conflict when that cannot be: then it stays, as it is."""
    session.say("another node takes the kernel over")
    try:
        session.client(here=True).send("POST", "/leadership/kernel/release", repeat=False)
    except Refusal as refusal:
        if isinstance(refusal.error, NotLeader):
            return  # it has moved meanwhile
        if not isinstance(refusal.error, Conflict):
            raise
        raise Conflict(
            f"{node} leads the cluster and cannot leave now: {refusal.error.detail}",
            hint=refusal.error.hint,
        ) from refusal


def _take_out(client: Client, node: str) -> None:
    """One that is out already, as when the answer of a first attempt was lost, has what it wants.

    Asked again while a new leader is just beginning, and when an answer was lost: the same again does no harm.
    """
    give_up_at = clock.now() + _NEW_LEADER_S
    while True:
        try:
            client.send("POST", path_of("nodes", node, "remove"))
            return
        except Refusal as refusal:
            if isinstance(refusal.error, NotFound):
                return
            if not isinstance(refusal.error, _PASSING) or clock.now() > give_up_at:
                raise
        time.sleep(_LOOK_S)


def _until_led(session: Session, found: dict[str, Any]) -> dict[str, Any]:
    """The cluster once this node is in it and a leader of the kernel is known here. Its modules restart meanwhile."""
    if not session.wait:
        return found
    client, end_at, seen = session.client(), clock.now() + session.patience_s, "the modules restart"
    while True:
        try:
            found = client.get("/cluster")
            news = _lacks(found)
            if not news:
                return found
        except PiccoloError as error:
            news = error.detail
        except Refusal as refusal:
            news = refusal.error.detail
        if news != seen:
            seen = news
            session.say(f"waiting: {printable(news)}")
        if clock.now() + _LOOK_S > end_at:
            raise DeadlineExceeded(
                f"this node is a member, but after {session.patience_s:g} s: {seen}",
                hint="`piccoloctl cluster list` shows how it goes",
            )
        time.sleep(_LOOK_S)


def _lacks(found: dict[str, Any]) -> str:
    members = {each["node"]: each for each in found.get("members") or ()}
    if found.get("mode") != "etcd" or found.get("node") not in members:
        return "this node is not listed yet"
    if members[found["node"]]["state"] != "alive":
        return "this node has no session in etcd yet"
    if not any(each["leads_kernel"] for each in members.values()):
        return "nobody leads the kernel yet"
    return ""


def _printed(found: dict[str, Any]) -> Printed:
    return Printed(found, _table, lambda document: [str(each["node"]) for each in document["members"]])


def _table(found: dict[str, Any], wide: bool, width: int) -> str:
    if found.get("mode") == "alone":
        return f"{found.get('node')} is a node alone: `piccoloctl cluster init` founds a cluster, `cluster join` joins one."
    external = found.get("etcd") == "external"
    etcd = ", etcd kept by its owner" if external else ""
    lines = [f"cluster {found.get('cluster')}, timing {found.get('profile')}{etcd}"] if wide else []
    columns = [column for column in NODES if not (external and column.title == "VOTE")]
    members = found.get("members") or []
    revs = [int(each.get("rev") or 0) for each in members]
    rows = [{**each, "lag": max(revs) - rev} for each, rev in zip(members, revs, strict=True)]
    lines.append(render(rows, columns, wide=wide, width=width))
    lines += [f"warning: {printable(str(each))}" for each in found.get("warnings") or ()]
    return "\n".join(lines)


@tokens.command("list", view=True)
@click.pass_obj
def list_tokens(session: Session) -> int:
    """The open ones, and those that ended lately. Their secrets are not kept and cannot be shown."""
    return access.show(session, _TOKENS_PATH, _TOKENS, "No tokens: `piccoloctl cluster tokens create`.")


@tokens.command()
@click.option("--witness", is_flag=True, help="For a node that only votes.")
@click.option("--expires", type=Duration(), metavar="TIME", help="End it after, as 10m; one hour without it, a day at most.")
@click.pass_obj
def create(session: Session, witness: bool, expires: float | None) -> int:
    """Make a token that lets one node in, and print it, this one time."""
    body = {**({"role": "witness"} if witness else {}), **({"expires_in_s": expires} if expires else {})}
    hint = "on the new node: `piccoloctl cluster join ADDRESS --token TOKEN`, with the address of a member"
    return access.make(session, _TOKENS_PATH, body, hint)


@tokens.command()
@click.argument("id", shell_complete=join_token_ids)
@click.pass_obj
def revoke(session: Session, id: str) -> int:
    """Make a join token void, at once."""
    return access.end(session, _TOKENS_PATH, id, "join token")
