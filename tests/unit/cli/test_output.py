"""One object, five forms; data on stdout, everything else on stderr; options anywhere on the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from piccolod.cli.table import Column, printable, render, width_of
from tests.unit.cli.api_double import ApiDouble, Reply
from tests.unit.cli.conftest import Ctl


def test_json_is_the_object_of_the_api(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    app["a field of the future"] = {"kept": [1, 2.5, None, "ü"]}
    double.on("GET", "/apps", [app])
    done = ctl("apps", "list", "-o", "json")
    assert json.loads(done.out) == [app]
    assert list(json.loads(done.out)[0]) == list(app)
    assert done.err == ""


def test_yaml_says_the_same(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps/hello", app)
    assert YAML(typ="safe").load(ctl("apps", "show", "hello", "-o", "yaml").out) == app


def test_names_are_one_a_line(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app, {**app, "name": "notes"}])
    assert ctl("ps", "-o", "name").out == "hello\nnotes\n"


def test_a_table_shows_state_and_address_and_wide_shows_more(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app])
    narrow, wide = ctl("ps").out, ctl("ps", "-o", "wide").out
    assert narrow.splitlines()[0].split() == ["APP", "STATE", "NODE", "ADDRESS", "REASON"]
    assert narrow.splitlines()[1].split() == ["hello", "running", "n1", "http://127.0.0.1:35000", "-"]
    assert "localhost/piccolo-demo:1" in wide
    assert "localhost/piccolo-demo:1" not in narrow


def test_no_colours_into_a_pipe(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app])
    assert "\x1b" not in ctl("ps").out


@pytest.mark.parametrize(
    "args", [["-o", "json", "apps", "list"], ["apps", "list", "-o", "json"], ["apps", "list", "--output=json"]]
)
def test_options_stand_before_or_after_the_command(ctl: Ctl, double: ApiDouble, args: list[str]) -> None:
    double.on("GET", "/apps", [])
    assert json.loads(ctl(*args).out) == []


def test_the_last_word_on_an_option_wins(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [app])
    assert ctl("-o", "json", "ps", "-o", "name").out == "hello\n"


def test_an_empty_list_says_what_to_do_and_its_json_is_a_list(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/apps", [])
    assert "apps install" in ctl("ps").out
    assert ctl("ps", "-o", "json").out == "[]\n"
    assert ctl("ps", "-o", "name").out == ""


def test_without_a_command_it_is_status(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/status", _status(app))
    done = ctl()
    assert done.code == 0
    assert "n1 at 127.0.0.1" in done.out
    assert "http://127.0.0.1:35000" in done.out
    assert done.out == ctl("status").out


def test_status_of_a_locked_node_says_how_to_open_it(ctl: Ctl, double: ApiDouble) -> None:
    double.on(
        "GET", "/status", {**_status(), "locked": True, "ready": False, "reason": "locked", "missing": {"apps": "locked"}}
    )
    assert "piccoloctl unlock" in ctl("status").out


def test_status_of_a_new_node_says_how_to_begin(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/status", {**_status(), "initialized": False, "locked": True, "ready": False, "reason": "no password"})
    assert "piccoloctl setup" in ctl("status").out


def test_status_names_the_module_that_is_not_well(ctl: Ctl, double: ApiDouble) -> None:
    ill = {"name": "router.0", "state": "crashlooping", "reason": "exit 1", "restarts": 7}
    double.on("GET", "/status", {**_status(), "modules": [ill]})
    assert "router.0 is crashlooping: exit 1" in ctl("status").out


def _status(*apps: dict[str, Any]) -> dict[str, Any]:
    module = {"name": "api", "state": "ready", "reason": "", "restarts": 0}
    return {"node": "n1", "name": "home", "address": "127.0.0.1", "cluster": None, "role": "leader", "locked": False,
            "initialized": True, "rev": 12, "health": "OK", "ready": True, "reason": "", "modules": [module],
            "apps": list(apps), "missing": {}}  # fmt: skip


def test_the_list_of_a_cluster_has_lag_and_seconds_to_the_deadline_of_each_node(ctl: Ctl, double: ApiDouble) -> None:
    def member(node: str, **other: Any) -> dict[str, Any]:
        return {"node": node, "role": "member", "address": "10.0.0.1", "rpc": "", "api_url": "", "state": "alive", "voter": True,
                "leads_kernel": False, "epoch": 0, "rev": 7, "deadline_s": 2.13} | other  # fmt: skip

    members = [member("n1", leads_kernel=True, epoch=3, rev=9), member("n2"), member("n3", deadline_s=None, rev=9)]
    double.on("GET", "/cluster", {"mode": "etcd", "node": "n1", "cluster": "c", "members": members, "warnings": []})
    title, *lines = ctl("cluster", "list").out.splitlines()
    assert title.split() == ["NODE", "STATE", "ROLE", "KERNEL", "VOTE", "EPOCH", "REV", "LAG", "DEADLINE", "ADDRESS"]
    assert lines[0].split()[-7:] == ["yes", "3", "9", "0", "2.1", "s", "10.0.0.1"]
    assert lines[1].split()[-5:] == ["7", "2", "2.1", "s", "10.0.0.1"]
    assert lines[2].split()[-4:] == ["9", "0", "never", "10.0.0.1"]


@pytest.mark.parametrize(("level", "code"), [("OK", 0), ("WARN", 1), ("ERROR", 2), ("strange", 3)])
def test_health_speaks_in_the_codes_of_monitoring(ctl: Ctl, double: ApiDouble, level: str, code: int) -> None:
    components = {"apps": {"level": level, "reason": "podman is away", "role": ""}}
    double.on("GET", "/health/detail", {"ready": True, "level": level, "reason": "", "components": components})
    assert ctl("health").code == code
    assert ctl("health", "apps").code == code
    assert "podman is away" in ctl("health", "apps").out


@pytest.mark.parametrize(
    ("state", "desired", "code"),
    [
        ("running", "running", 0),
        ("degraded", "running", 1),
        ("failed", "running", 2),
        ("stopped", "stopped", 0),
        ("?", "running", 3),
    ],
)
def test_health_of_an_app(ctl: Ctl, double: ApiDouble, app: dict[str, Any], state: str, desired: str, code: int) -> None:
    double.on("GET", "/health/detail", {"ready": True, "level": "OK", "reason": "", "components": {}})
    double.on("GET", "/apps/hello", {**app, "state": state, "desired": desired})
    assert ctl("health", "hello").code == code
    assert ctl("health", "app:hello").code == code


def test_health_of_what_cannot_be_asked_is_unknown(ctl: Ctl, double: ApiDouble, folder: Path) -> None:
    assert ctl("health", socket=str(folder / "none.sock")).code == 3
    double.on("GET", "/health/detail", {"ready": True, "level": "OK", "reason": "", "components": {}})
    assert ctl("health", "nobody").code == 3


def test_control_characters_of_others_do_not_reach_the_terminal(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [{**app, "reason": "\x1b[2Jgone\nand more"}])
    out = ctl("ps").out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert printable("a\x07b") == "a\\x07b"


def test_columns_line_up_for_wide_letters_too() -> None:
    text = render([("日本", "x"), ("abc", "y")], [Column("A", lambda r: r[0]), Column("B", lambda r: r[1])])
    assert len({width_of(line[: line.rindex(end)]) for line, end in zip(text.splitlines()[1:], "xy", strict=True)}) == 1


def test_a_narrow_terminal_cuts_the_last_column_only() -> None:
    text = render(
        [("name", "a long reason that goes on")], [Column("A", lambda r: r[0]), Column("B", lambda r: r[1])], width=20
    )
    assert text.splitlines()[1] == "name  a long reason…"


def test_watching_without_a_terminal_writes_each_change_once(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("GET", "/apps", [{**app, "state": "starting"}], Reply(503, {"code": "unavailable", "detail": "away"}), [app])
    done = ctl("ps", "-w", "-o", "json", "--timeout", "4s")
    assert done.code == 7
    assert [json.loads(line)[0]["state"] for line in done.out.splitlines()] == ["starting", "running"]
    assert done.err.count("error: away") == 1


def test_watching_is_for_what_shows_something(ctl: Ctl, double: ApiDouble) -> None:
    assert ctl("lock", "-w").code == 2
    assert ctl("-w", "lock").code == 2
    assert double.sent == []


def test_api_gives_the_body_as_it_is(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/apps", Reply(200, [{"b": 1, "a": 2}]))
    assert ctl("api", "get", "/apps").out == '[{"b": 1, "a": 2}]\n'
    double.on("POST", "/routes/test", {"ok": True})
    ctl("api", "POST", "routes/test", "-d", '{"app": "x"}')
    assert double.sent[-1].document == {"app": "x"}
    assert double.sent[-1].headers["content-type"] == "application/json"


def test_api_shows_a_problem_and_ends_in_its_code(ctl: Ctl, double: ApiDouble) -> None:
    double.refuse("GET", "/apps", 423, "locked")
    done = ctl("api", "GET", "/apps")
    assert done.code == 4
    assert json.loads(done.out)["code"] == "locked"
    assert "error: locked happened" in done.err
