"""What podman says is told without what the manifest says."""

from __future__ import annotations

import time

from piccolod.errors import Unavailable
from services.apps.discreet import discreet, frames, without
from services.apps.manifest import Manifest
from services.apps.podman import PodmanError, named
from services.apps.validate import validate


def manifest(more: str, image: str = "image: localhost/a:1") -> Manifest:
    text = f"name: notes\n{image}\nlisteners: [{{name: web, guest_port: 80, flow: tcp, protocol: http}}]\n{more}"
    return validate(text).manifest


def test_a_command_that_cannot_be_run_is_named_by_its_place() -> None:
    words = 'runc create failed: exec: "/bin/hidden": stat /bin/hidden: no such file or directory'
    told = 'runc create failed: exec: "(command[0])": stat (command[0]): no such file or directory'
    assert discreet(words, manifest("command: [/bin/hidden, x]")) == told


def test_environment_paths_and_checks_are_named_by_their_places() -> None:
    app = manifest(
        "environment: {DSN: 'postgres://u:pw@h'}\n"
        "secrets: [{name: s, file: /run/secrets/hidden}]\n"
        "storage: {persistent: {data: {container: /deep}}, temporary: {cache: {container: /quick}}}\n"
        "healthcheck: {exec: {command: [probe-it]}, ready: {http: {port: web, path: /token/1}}}\n"
    )
    words = "postgres://u:pw@h /run/secrets/hidden /deep /quick probe-it /token/1"
    assert discreet(words, app) == (
        "(environment.DSN) (secrets[0].file) (storage.persistent.data.container) (storage.temporary.cache.container) "
        "(healthcheck.exec.command[0]) (healthcheck.ready.http.path)"
    )


def test_a_line_of_a_containerfile_is_named_by_its_number() -> None:
    app = manifest("", 'build: {containerfile: "FROM scratch\\nRUN  make secret"}')
    assert discreet('building at STEP "RUN make secret": exit status 2', app) == (
        'building at STEP "(build.containerfile, line 2)": exit status 2'
    )


def test_quotes_line_ends_and_long_values_do_not_help() -> None:
    app = manifest('command: [\'say "this"\', "two\\n lines", abcdefghijklmnop]')
    assert discreet(r'exec: "say \"this\"": failed', app) == 'exec: "(command[0])": failed'
    assert discreet("two lines", app) == "(command[1])"
    assert discreet("it was cut here: abcdefg", app) == "it was cut here: (command[2])"


def test_the_longest_value_is_meant_and_words_are_left_whole() -> None:
    app = manifest("command: [/srv, /srv/app, one]")
    assert discreet("cannot run /srv/app, nor /srv, but everyone can", app) == (
        "cannot run (command[1]), nor (command[0]), but everyone can"
    )
    assert discreet("/var/merged/srv/app: not a directory", app) == "/var/merged(command[1]): not a directory"


def test_both_versions_of_an_update_are_known() -> None:
    assert discreet("first second", manifest("command: [first]"), manifest("command: [second]")) == "(command[0]) (command[0])"


def test_what_stands_for_a_value_is_not_searched_for_others() -> None:
    assert discreet("/srv/abcde", manifest("command: [/srv/abcde, command]")) == "(command[0])"


def test_short_words_are_left_so_that_sentences_stay_readable() -> None:
    app = manifest("command: [the, file, container-7, secret]")
    assert discreet("the file of container-7 has no secret", app) == "the file of (command[2]) has no (command[3])"


def test_gos_quotes_do_not_help() -> None:
    app = manifest(r'command: ["bell\a\u007f\u00a0\v"]')
    assert discreet(r'exec: "bell\a\x7f\u00a0\v": failed', app) == 'exec: "(command[0])": failed'


def test_values_of_secrets_are_named_by_their_places() -> None:
    assert (
        without("bad variable TOKEN=hunter22", [("environment.TOKEN", "hunter22")]) == "bad variable TOKEN=(environment.TOKEN)"
    )


def test_thousands_of_lines_hold_up_nobody() -> None:
    lines = "\\n".join(["FROM scratch", *(f"RUN {number}" for number in range(1000, 8000))])
    app = manifest("", f'build: {{containerfile: "{lines}"}}')
    words = "building at STEP " + "RUN 12 " * 200
    began = time.process_time()
    assert discreet(words, app) == words
    assert time.process_time() - began < 0.4


def test_of_a_bug_the_places_are_told_and_not_the_words() -> None:
    try:
        raise KeyError("hidden")
    except KeyError as error:
        told = frames(error)
    assert len(told) == 1 and told[0].startswith("test_discreet.py:") and "hidden" not in told[0]


def test_of_an_app_that_nobody_knows_podmans_words_are_not_told() -> None:
    assert named(PodmanError("exec hidden")) == "podman could not do it"
    assert named(Unavailable("podman is silent")) == "podman is silent"
