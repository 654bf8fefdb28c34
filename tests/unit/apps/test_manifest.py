"""A manifest is accepted whole or refused with every mistake and its place."""

from __future__ import annotations

import json
import resource
import socket
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piccolod.errors import Invalid, Problem
from services.apps import capabilities
from services.apps import host as host_probe
from services.apps.host import Host
from services.apps.later import LATER_KEYS, LATER_VALUES
from services.apps.manifest import Manifest, Policy
from services.apps.rules import Surroundings
from services.apps.validate import validate

SMALL = "name: notes\nimage: localhost/notes:1\nlisteners: [{name: web, guest_port: 80}]\n"

FULL = """\
# every field that is honoured
name: notes
title: Family notes
type: system
image: registry.example.org:5000/team/notes:1.10@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
pull: always
command: ["serve", "--port", "80"]
environment: {TZ: Europe/Berlin, YES: yes, OCTAL: 012, VERSION: 1.10, EMPTY: , NULL: null, HEX: 0x1F}
secrets: [{name: db-password, file: /run/secrets/db-password}]
cluster: {policy: leader_only, failback: start_only, on_store_loss: stop, prefer: [], never: []}
listeners:
  - {name: web, guest_port: 80, flow: tcp, protocol: http, public_port: auto, client_ip: xff, hold: 10s}
  - {name: tls, guest_port: 443, flow: tls, public_port: 8443, client_ip: proxy-v2}
storage:
  persistent: {data: {container: /data, size_limit: 10GiB, replicate: off}}
  temporary: {cache: {container: /cache, size_limit: 1GiB}}
filesystem: {read_only_root: false}
healthcheck:
  http: {path: /health, port: web}
  interval: 5s
  timeout: 3s
  retries: 3
  start_period: 30s
  ready: {exec: {command: [test, -e, /ready]}}
stop: {signal: SIGINT, grace: 8s}
update: {health_deadline: 2m, auto_rollback: true}
backup: {}
depends_on: [postgres]
permissions:
  network: {internet: allow, local_network: allow, dns: allow}
  capabilities: [NET_BIND_SERVICE, CAP_CHOWN]
  devices: []
  privileged: false
  resources: {max_processes: 200, max_open_files: 2048}
resources: {limits: {memory: 1GiB, cpu: 2.0}}
app_config: {on: yes, count: 3, ratio: 0.5, nothing: ~, "quoted": "3", list: [1, two]}
x-owner: me
x-more: {a: [1]}
"""

KNOWN = Surroundings(depends_on={"postgres": ()})


def mistakes(text: str, form: str = "yaml", **around: object) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        validate(text, form, Surroundings(**around))  # type: ignore[arg-type]
    return list(caught.value.errors)


def test_the_smallest_manifest_has_the_documented_defaults() -> None:
    manifest = validate(SMALL).manifest
    assert manifest.cluster.policy is Policy.FOLLOWER_PROXY
    assert manifest.filesystem.read_only_root
    assert manifest.listeners[0].public_port == "auto"
    assert manifest.listeners[0].hold_s == 10.0
    assert (manifest.stop.signal, manifest.stop.grace_s) == ("SIGTERM", 8.0)


def test_every_field_arrives() -> None:
    manifest = validate(FULL, around=KNOWN).manifest
    assert manifest.environment == {
        "TZ": "Europe/Berlin", "YES": "yes", "OCTAL": "012", "VERSION": "1.10", "EMPTY": "", "NULL": "null", "HEX": "0x1F",
    }  # fmt: skip
    assert manifest.listeners[1].public_port == 8443
    assert manifest.storage.persistent["data"].size_limit_bytes == 10 * 2**30
    assert manifest.healthcheck is not None
    assert manifest.healthcheck.ready is not None
    assert manifest.healthcheck.ready.exec is not None
    assert manifest.healthcheck.ready.exec.command == ("test", "-e", "/ready")
    assert manifest.app_config == {"on": "yes", "count": 3, "ratio": 0.5, "nothing": None, "quoted": "3", "list": [1, "two"]}
    assert manifest.extensions == {"x-owner": "me", "x-more": {"a": [1]}}
    assert manifest.resources.limits.cpu == 2.0


def test_json_is_a_manifest_too_and_its_mistakes_have_places() -> None:
    text = '{"name": "notes", "image": "a/b:1",\n\t"listeners": [{"name": "web", "guest_port": 80}],\n "environment": {"A": "\\ud83d\\ude00"}}'
    assert validate(text, "json").manifest.environment == {"A": "😀"}
    problems = mistakes(
        '{"name": "notes", "image": "a",\n "listeners": [{"name": "web", "guest_port": "80"}], "name": 1}', "json"
    )
    assert [(p.path, p.line, p.column) for p in problems] == [("listeners[0].guest_port", 2, 46), ("name", 2, 54)]


# (the text after a small manifest, or a whole one; path, line, column, part of the message)
GOLDEN = [
    ("", "", 0, 0, "the manifest is empty"),
    ("- a", "", 1, 1, "a manifest is a mapping"),
    ("just text", "", 1, 1, "a manifest is a mapping"),
    ("name: [a", "", 1, 9, "not YAML"),
    ("name: 'a", "", 1, 9, "not YAML"),
    ("a: b: c", "", 1, 5, "mapping values are not allowed here"),
    ("name:\tnotes", "", 1, 6, "a tab"),
    ("name: a\n\timage: b", "", 2, 1, "a tab"),
    (SMALL + "---\nname: b\n", "", 4, 1, "a second document"),
    ("%YAML 1.1\n---\n" + SMALL, "", 2, 1, "write YAML 1.2"),
    (SMALL + "title: !!str x\n", "", 4, 8, "tags are not used here"),
    (SMALL + "title: *x\n", "", 4, 8, "names no anchor"),
    (SMALL + "x-a: &x [*x]\n", "", 4, 10, "contains itself"),
    (SMALL + "? [a]\n: b\n", "", 4, 3, "a key must be text"),
    (SMALL + "x-deep: " + "[" * 40 + "]" * 40, "", 4, 40, "levels deep"),
    (SMALL + "name: other\n", "name", 4, 1, "is there twice: first in line 1"),
    (SMALL + "environment: {A: 1, B: 2, A: 3}\n", "environment.A", 4, 27, "is there twice"),
    (SMALL.replace("notes\n", "Notes\n", 1), "name", 1, 7, "lowercase"),
    (SMALL.replace("name: notes\n", 'name: "notes\\n"\n', 1), "name", 1, 7, "lowercase"),
    (SMALL.replace("name: notes\n", "name: api\n", 1), "name", 1, 7, "reserved"),
    (SMALL.replace("name: notes\n", "name: a-\n", 1), "name", 1, 7, "hyphen"),
    (SMALL.replace("name: notes\n", "", 1), "name", 1, 1, "is required"),
    ("name: a\nlisteners: [{name: web, guest_port: 80}]\n", "image", 1, 1, "is required, or `build`"),
    (SMALL + "build: {containerfile: FROM scratch}\n", "build", 4, 8, "not both"),
    (SMALL.replace("image: localhost/notes:1", "build: {containerfile: x, git: y}"), "build.git", 2, 27, "not supported yet"),
    (SMALL.replace("localhost/notes:1", "Notes"), "image", 2, 8, "is not an image"),
    (SMALL.replace("localhost/notes:1", "a@sha256:ab"), "image", 2, 8, "is not an image"),
    (SMALL + "imag: x\n", "imag", 4, 1, "did you mean `image`?"),
    (SMALL + "ports: ['80:80']\n", "ports", 4, 1, "listeners: [{name: web, guest_port: 80}]"),
    (SMALL + "volumes: [/etc:/etc]\n", "volumes", 4, 1, "folders of the host cannot be named"),
    (SMALL + "<<: {a: b}\n", "<<", 4, 1, "merge keys are not part of YAML 1.2"),
    (SMALL + "privileged: true\n", "privileged", 4, 1, "below `permissions`"),
    (SMALL + "title: {a: b}\n", "title", 4, 8, "must be text"),
    (SMALL + "pull: sometimes\n", "pull", 4, 7, "must be one of `missing`, `never`, `always`"),
    (SMALL + "command: serve\n", "command", 4, 10, "must be a list"),
    (SMALL + "environment: [A=1]\n", "environment", 4, 14, "must be a mapping"),
    (SMALL + "environment: {1A: b}\n", "environment.1A", 4, 15, "not begin with a digit"),
    (SMALL + "environment: {A: [b]}\n", "environment.A", 4, 18, "must be text"),
    (SMALL + "secrets: [{name: p}]\n", "secrets[0]", 4, 11, "needs either `file` or `env`"),
    (SMALL + "secrets: [{name: p, file: run}]\n", "secrets[0].file", 4, 27, "must be absolute"),
    ("name: a\nimage: a\nlisteners: []\n", "listeners", 3, 12, "must not be empty"),
    ("name: a\nimage: a\nlisteners: web\n", "listeners", 3, 12, "must be a list"),
    (SMALL.replace("80", "0"), "listeners[0].guest_port", 3, 37, "must be 1 to 65535"),
    (SMALL.replace("80", "0x50"), "listeners[0].guest_port", 3, 37, "must be a whole number"),
    (SMALL.replace("80", "'80'"), "listeners[0].guest_port", 3, 37, "without quotes"),
    (SMALL.replace("80", "80, flow: udp"), "listeners[0].flow", 3, 47, "not supported yet: udp"),
    (SMALL.replace("80", "80, flow: TCP"), "listeners[0].flow", 3, 47, "did you mean `tcp`?"),
    (SMALL.replace("80", "80, public_port: any"), "listeners[0].public_port", 3, 54, "or `auto`"),
    (SMALL.replace("80", "80, client_ip: xff"), "listeners[0].client_ip", 3, 52, "needs `protocol: http`"),
    (SMALL.replace("80", "80, flow: tls, protocol: http"), "listeners[0].protocol", 3, 62, "must be `raw`"),
    (SMALL.replace("80", "80, hold: 10"), "listeners[0].hold", 3, 47, "is not a duration"),
    (SMALL.replace("80", "80, remote_ports: [80]"), "listeners[0].remote_ports", 3, 41, "not supported yet: remote access"),
    (SMALL.replace("}]", "}, {name: web, guest_port: 81}]"), "listeners[1].name", 3, 49, "already used by listeners[0]"),
    (SMALL + "cluster: {prefer: [N1]}\n", "cluster.prefer[0]", 4, 20, "must be a node's name"),
    (SMALL + "cluster: {prefer: [n1, n1]}\n", "cluster.prefer[1]", 4, 24, "there twice"),
    (SMALL + "cluster: {prefer: [n1], never: [n2, n1]}\n", "cluster.never[1]", 4, 37, "in `prefer` too"),
    (SMALL + "cluster: {policy: always_on, prefer: [n1]}\n", "cluster.prefer", 4, 38, "runs on every node"),
    (SMALL + "cluster: {prefer: n1}\n", "cluster.prefer", 4, 19, "must be a list"),
    (SMALL + "cluster: {policy: always_on, never: [n1]}\n", "cluster.never", 4, 37, "not supported yet"),
    (SMALL + "cluster: {require: {disk: ssd}}\n", "cluster.require", 4, 11, "not supported yet"),
    (SMALL + "cluster: {failback: auto}\n", "cluster.failback", 4, 21, "must be `start_only`"),
    (SMALL + "backup: {pre: [x]}\n", "backup", 4, 1, "not supported yet: backups"),
    (SMALL + "storage: {persistent: {d: {container: /}}}\n", "storage.persistent.d.container", 4, 39, "root of the container"),
    (SMALL + "storage: {persistent: {d: {container: /a/../b}}}\n", "storage.persistent.d.container", 4, 39, "`..`"),
    (SMALL + "storage: {persistent: {d: {container: /a//b}}}\n", "storage.persistent.d.container", 4, 39, "normalised"),
    (SMALL + "storage: {persistent: {d: {container: /proc/x}}}\n", "storage.persistent.d.container", 4, 39, "/proc"),
    (SMALL + "storage: {persistent: {d: {container: /d, host: /etc}}}\n", "storage.persistent.d.host", 4, 43, "folder of the host"),
    (SMALL + "storage: {persistent: {d: {container: /d, replicate: 5s}}}\n", "storage.persistent.d.replicate", 4, 54, "not supported yet"),
    (SMALL + "storage: {persistent: {d: {container: /d, replicate: x}}}\n", "storage.persistent.d.replicate", 4, 54, "`off` or an interval"),
    (SMALL + "storage: {persistent: {d: {container: /d, size_limit: 1MiB}}}\n", "storage.persistent.d.size_limit", 4, 55, "at least 8MiB"),
    (SMALL + "storage: {temporary: {d: {container: /piccolo/config}}}\n", "storage.temporary.d.container", 4, 38, "piccolod's"),
    (SMALL + "storage: {persistent: {a: {container: /d}}, temporary: {b: {container: /d}}}\n", "storage.temporary.b.container", 4, 72, "already used"),
    (SMALL + "cluster: {policy: always_on}\nstorage: {persistent: {a: {container: /d}}}\n", "cluster.policy", 4, 19, "cannot have a persistent volume"),
    (SMALL + "healthcheck: {interval: 5s}\n", "healthcheck", 4, 14, "exactly one of"),
    (SMALL + "healthcheck: {tcp: {port: wob}}\n", "healthcheck.tcp.port", 4, 27, "no listener is called 'wob'; there is web"),
    (SMALL + "healthcheck: {http: {port: web, path: health}}\n", "healthcheck.http.path", 4, 39, "must begin with /"),
    (SMALL + "healthcheck: {exec: {command: [a]}, ready: {exec: {command: [b]}}}\n", "healthcheck.ready.exec", 4, 51, "not supported yet"),
    (SMALL + "healthcheck: {http: {port: web}, retries: 0}\n", "healthcheck.retries", 4, 43, "must be 1 to 100"),
    (SMALL + "stop: {signal: SIGFOO}\n", "stop.signal", 4, 16, "not a signal"),
    (SMALL + "stop: {signal: 15}\n", "stop.signal", 4, 16, "name of a signal"),
    (SMALL + "depends_on: [nobody]\n", "depends_on[0]", 4, 14, "no app is called"),
    (SMALL + "depends_on: [notes]\n", "depends_on[0]", 4, 14, "itself"),
    (SMALL + "permissions: {privileged: true}\n", "permissions.privileged", 4, 27, "consent"),
    (SMALL + "permissions: {privileged: yes}\n", "permissions.privileged", 4, 27, "YAML 1.2 reads this as text"),
    (SMALL + "permissions: {capabilities: [SYS_ADMIN]}\n", "permissions.capabilities[0]", 4, 30, "consent"),
    (SMALL + "permissions: {capabilities: [FLY]}\n", "permissions.capabilities[0]", 4, 30, "not a capability"),
    (SMALL + "permissions: {devices: [/dev/kvm]}\n", "permissions.devices", 4, 15, "not supported yet"),
    (SMALL + "permissions: {network: {local_network: allow}}\n", "permissions.network.local_network", 4, 40, "not supported yet"),
    (SMALL + "resources: {limits: {memory: 1GB }, x: 1}\n", "resources.x", 4, 37, "unknown key"),
    (SMALL + "resources: {limits: {memory: GB}}\n", "resources.limits.memory", 4, 30, "is not a size"),
    (SMALL + "resources: {limits: {memory: 0B}}\n", "resources.limits.memory", 4, 30, "between 1 B"),
    (SMALL + "resources: {limits: {cpu: .nan}}\n", "resources.limits.cpu", 4, 27, "must be finite"),
    (SMALL + "resources: {limits: {cpu: 1e999}}\n", "resources.limits.cpu", 4, 27, "must be 0"),
    (SMALL + "resources: {limits: {cpu: 65}}\n", "resources.limits.cpu", 4, 27, "must be 0 to 64"),
    (SMALL + "resources: {limits: {cpu: -1}}\n", "resources.limits.cpu", 4, 27, "must be 0 to 64"),
    (SMALL + "storage: {persistent: {d: {container: /sys/x}}}\n", "storage.persistent.d.container", 4, 39, "/sys"),
    (SMALL + "storage: {temporary: {d: {container: /dev}}}\n", "storage.temporary.d.container", 4, 38, "/dev"),
    (SMALL + "permissions: {network: {internet: deny, dns: allow}}\n", "permissions.network.dns", 4, 46, "not supported yet: names"),
    (SMALL + "environment: {P: x}\nsecrets: [{name: p, env: P}]\n", "secrets[0].env", 5, 26, "also in `environment`"),
    (SMALL.replace("80", "443, flow: tls") + "healthcheck: {http: {port: web}}\n", "healthcheck.http.port", 4, 28, "speaks TLS"),
    (SMALL.replace("80", "80, client_ip: proxy-v2") + "healthcheck: {http: {port: web}}\n", "healthcheck.http.port", 4, 28, "PROXY header"),
    (SMALL.replace("80", "80, client_ip: proxy-v2") + "healthcheck: {tcp: {port: web}}\n", "healthcheck.tcp.port", 4, 27, "PROXY header"),
    (SMALL + "healthcheck: {tcp: {port: web}, interval: 50ms}\n", "healthcheck.interval", 4, 43, "at least 100ms"),
    (SMALL.replace("80}]", "80, public_port: 8080}, {name: b, guest_port: 81, public_port: 8080}]"), "listeners[1].public_port", 3, 100, "already used by listeners[0]"),
]  # fmt: skip


def test_a_node_that_is_named_and_not_there_is_a_warning() -> None:
    text = SMALL + "cluster: {prefer: [n1, n9], never: [n2, n8]}\n"
    found = validate(text, around=Surroundings(nodes=frozenset({"n1", "n2"}))).warnings
    assert [each.partition(":")[0] for each in found] == ["cluster.prefer[1]", "cluster.never[1]"]
    assert validate(text).warnings == (), "where it is not known who is there"


@pytest.mark.parametrize(
    ("text", "path", "line", "column", "message"), GOLDEN, ids=[f"{i}-{g[4][:30]}" for i, g in enumerate(GOLDEN)]
)
def test_a_mistake_is_named_with_its_place(text: str, path: str, line: int, column: int, message: str) -> None:
    problems = mistakes(text)
    assert len(problems) == 1, problems
    problem = problems[0]
    assert (problem.path, problem.line, problem.column) == (path, line, column), problem
    assert message in problem.message


def asking(key: str) -> str:
    """A manifest that asks for what the key, a path of LATER_KEYS, would do."""
    first, *rest = key.split(".")
    if first == "listeners":
        return SMALL.replace("80}", f"80, {rest[0]}: [x]}}")
    if first == "build":
        return SMALL.replace("image: localhost/notes:1", f"build: {{containerfile: x, {rest[0]}: [x]}}")
    body = "[x]" if rest else "{x: y}"
    for part in reversed(rest):
        body = f"{{{part}: {body}}}"
    return f"{SMALL}{first}: {body}\n"


@pytest.mark.parametrize("key", LATER_KEYS)
def test_what_comes_later_is_refused_and_never_ignored(key: str) -> None:
    (problem,) = mistakes(asking(key))
    assert problem.path.replace("[0]", "") == key
    assert problem.message == f"not supported yet: {LATER_KEYS[key]}"


@pytest.mark.parametrize(("key", "value"), LATER_VALUES)
def test_a_value_that_comes_later_is_refused_too(key: str, value: str) -> None:
    first, name = key.split(".")
    asked = {"listeners": SMALL.replace("80}", f"80, {name}: {value}}}"), "cluster": f"{SMALL}cluster: {{{name}: {value}}}\n"}
    (problem,) = mistakes(asked[first])
    assert problem.message == f"not supported yet: {LATER_VALUES[key, value]}"


def test_all_mistakes_come_at_once_in_the_order_of_the_text() -> None:
    problems = mistakes(
        "name: Api\nimage: A\nlisteners:\n  - {name: web, guest_port: 0}\n  - {name: web, guest_port: 1, hold: x}\n"
        "healthcheck: {http: {port: nobody}}\nresources: {limits: {cpu: .inf}}\nports: []\n"
    )
    assert [p.path for p in problems] == [
        "name", "image", "listeners[0].guest_port", "listeners[1].name", "listeners[1].hold", "resources.limits.cpu", "ports",
    ]  # fmt: skip
    assert [p.line for p in problems] == sorted(p.line for p in problems)


def test_a_cycle_of_dependencies_is_shown() -> None:
    around = {"a": ("b",), "b": ("notes",)}
    (problem,) = mistakes(SMALL + "depends_on: [a]\n", depends_on=around)
    assert problem.message == "a cycle: notes -> a -> b -> notes"


def test_consent_allows_what_takes_the_machine() -> None:
    text = SMALL + "permissions: {privileged: true, capabilities: [SYS_ADMIN]}\n"
    assert validate(text, around=Surroundings(consent=True)).manifest.permissions.privileged


def test_what_the_host_cannot_hold_to_is_refused_or_stays_as_a_warning() -> None:
    weak = Host(memory=False, cpu=False, open_files=1000, capabilities=frozenset())
    text = SMALL + (
        "resources: {limits: {memory: 1GiB, cpu: 1}}\npermissions: {capabilities: [CHOWN], resources: {max_open_files: 5000}}\n"
    )
    paths = [p.path for p in mistakes(text, host=weak)]
    assert paths == [
        "resources.limits.memory", "resources.limits.cpu", "permissions.capabilities[0]", "permissions.resources.max_open_files",
    ]  # fmt: skip
    assert len(validate(text, around=Surroundings(host=weak, strict=False)).warnings) == 4


def test_what_containers_may_have_is_read_from_the_process_that_starts_them(tmp_path: Path) -> None:
    assert host_probe.probe(tmp_path / "nobody").capabilities == Host().capabilities
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "podman.sock"))
        listener.listen()
        found = host_probe.probe(tmp_path / "podman.sock")
    own = Path("/proc/self/status").read_text()
    assert found.capabilities == capabilities.effective(own)
    assert 0 < found.processes <= 1 << 31
    assert found.open_files <= max(1_048_576, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_a_secret_in_the_environment_is_warned_about() -> None:
    checked = validate(SMALL + "secrets: [{name: p, env: PASSWORD}]\n")
    assert "every process of the app sees an environment variable" in checked.warnings[0]
    assert "disk" not in checked.warnings[0]


def test_tabs_inside_of_text_are_text() -> None:
    text = SMALL + 'title: ok # a\tcomment\nenvironment: {A: "a\\tb"}\nbuild: ~\n'
    assert validate(text).manifest.environment == {"A": "a\tb"}


def bombs() -> dict[str, str]:
    layers = "".join(f"  - &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20))
    return {
        "aliases": SMALL + "x-a:\n  - &a [x, x, x, x, x, x, x, x, x]\n" + layers,
        "wide": SMALL + "x-a: [" + "1," * 100_000 + "]",
        "deep": SMALL + "x-a: " + "[" * 200_000,
        "deep maps": SMALL + "x-a: " + "{a: " * 60_000,
        "keys": SMALL + "".join(f"k{i}: 1\n" for i in range(20_000)),
        "long": SMALL + "x-a: '" + "a" * 300_000 + "'",
        "one scalar": SMALL + "title: '" + "a" * 200_000 + "'",
        "newlines": SMALL + "\n" * 250_000 + "x",
        "dashes": SMALL + "x-a:\n" + "- " * 100_000,
        "questions": "? " * 100_000,
        "quotes": SMALL + "x-a: [" + "'', " * 60_000,
        "comments": SMALL + "#\n" * 120_000 + "y: 1",
        "anchors": SMALL + "x-a: [" + "".join(f"&a{i} b, " for i in range(15_000)) + "]",
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_fast_and_in_bounded_memory(name: str) -> None:
    text = bombs()[name]
    tracemalloc.start()
    began = time.process_time()
    problems = mistakes(text)
    took = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problems
    assert took < 3.0, f"{took:.2f} s, traced"
    assert peak < 50 * 2**20, f"{peak / 2**20:.1f} MiB"


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_reader(text: str) -> None:
    for form in ("yaml", "json"):
        try:
            validate(text, form)
        except Invalid as error:
            assert error.errors


_PIECES = st.sampled_from(
    [
        *FULL.splitlines(keepends=True),
        "  - a\n",
        "&a ",
        "*a",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "\t",
        "'",
        '"',
        "|\n",
        "? ",
        "!t ",
        "%",
        "\x85",
        "---\n",
    ]
)


@given(st.lists(_PIECES, max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_mixture_of_pieces_breaks_the_reader(pieces: list[str]) -> None:
    try:
        validate("".join(pieces), around=KNOWN)
    except Invalid as error:
        assert error.errors
        assert all(p.line >= 0 and p.message for p in error.errors)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*Manifest.__struct_fields__, "x-a", "port"]), _JSON, max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_field_is_a_manifest_or_a_list_of_mistakes(body: dict[str, object]) -> None:
    text = json.dumps(body)
    for form in ("yaml", "json"):
        try:
            validate(text, form)
        except Invalid as error:
            assert error.errors


@given(_JSON)
@settings(max_examples=200, deadline=None)
def test_app_config_arrives_as_it_was_written_in_json(value: object) -> None:
    text = json.dumps({"name": "a", "image": "b", "listeners": [{"name": "w", "guest_port": 1}], "app_config": value})
    try:
        seen = validate(text, "json").manifest.app_config
    except Invalid as error:
        assert "NaN" in text or "Infinity" in text or "surrogate" in error.errors[0].message
        return
    assert json.dumps(seen) == json.dumps(value) or any(c in json.dumps(value) for c in "eE0123456789")


def test_a_network_rule_that_is_not_enforced_is_refused_or_said_for_as_long_as_it_lasts() -> None:
    text = SMALL + "permissions: {network: {internet: allow, dns: deny}}\n"
    with pytest.raises(Invalid, match="mistake") as caught:
        validate(text)
    assert "not supported yet" in caught.value.errors[0].message
    assert any("permissions.network.dns" in said for said in validate(text, around=Surroundings(strict=False)).warnings)
    alone = validate(SMALL + "permissions: {network: {local_network: deny}}\n")
    assert any("this host's own addresses" in said for said in alone.warnings)


def test_no_app_is_called_as_a_command_of_the_api() -> None:
    with pytest.raises(Invalid) as caught:
        validate(SMALL.replace("name: notes", "name: validate"))
    assert "reserved" in caught.value.errors[0].message
