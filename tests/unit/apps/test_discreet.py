"""What podman says is told without what the manifest says."""

from __future__ import annotations

from services.apps.discreet import discreet
from services.apps.manifest import Manifest
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
