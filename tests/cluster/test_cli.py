"""Every command of piccoloctl against a node that lives: it ends with a code that means something, and its JSON is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.node import PASSWORD, Node
from tests.unit.cli.test_routes import ASKING

MANIFEST = (
    "name: hello\nimage: localhost/piccolo-demo:1\npull: never\nlisteners: [{name: web, guest_port: 80, public_port: auto}]\n"
)
# Those that end what the others ask for come last; `setup` is refused, for there is a password.
LAST = ("store repair", "modules restart", "apps uninstall", "keys password", "keys recovery use", "lock", "unlock")
ORDER = [*(name for name in ASKING if name not in LAST), *LAST]
STREAMS = {"events"}
PLAIN = {"api", "logs", "apps logs", "modules logs"}  # text, or a document a line
INPUT = {
    "apps validate": MANIFEST, "apps plan": MANIFEST, "apps apply": MANIFEST, "apps install": MANIFEST,
    "setup": f"{PASSWORD}\n", "unlock": f"{PASSWORD}\n", "keys recovery new": f"{PASSWORD}\n",
    "keys password": f"{PASSWORD}\n{PASSWORD}\n",
}  # fmt: skip
# Where it is not 0. Health may have a warning to tell; what is not there is 3, what is refused 1, bad input 8.
CODES = {
    "health": {0, 1}, "doctor": {0, 1}, "status": {0, 1}, "setup": {1}, "apps install": {1}, "leaders switchover": {3},
    "leaders release": {1}, "volumes show": {3}, "apps update": {3}, "apps revert": {1}, "apps move": {3}, "tokens revoke": {3},
    "keys recovery use": {8},
    "images load": {8}, "images import": {8}, "images push-peers": {3},
    # a node alone, on loopback
    "cluster init": {8}, "cluster join": {8}, "cluster leave": {1}, "cluster pause": {1}, "cluster resume": {1},
    "cluster recover": {1},
    "cluster tokens create": {1}, "cluster tokens revoke": {3}, "nodes remove": {1},
    "nodes drain": {1}, "nodes undrain": {1},
}  # fmt: skip


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        node.load_demo_image()
        node.install(MANIFEST)
        yield node


@pytest.mark.parametrize("command", [name for name in ORDER if name not in STREAMS])
def test_a_command_does_on_a_live_node_what_it_says(node: Node, command: str) -> None:
    arguments, stdin = ASKING[command]
    done = node.ctl("-o", "json", *command.split(), *arguments, text=INPUT.get(command, stdin))
    assert done.returncode in CODES.get(command, {0}), done
    assert "Traceback" not in done.stderr
    if done.returncode == 0 and done.stdout and command not in PLAIN:
        json.loads(done.stdout)
    assert done.returncode == 0 or done.stderr.strip(), "it says why"
