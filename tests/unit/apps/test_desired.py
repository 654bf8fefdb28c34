"""What commands make of the document of an app."""

from __future__ import annotations

import msgspec
import pytest

from piccolod.errors import Busy, Conflict, Invalid
from services.apps import desired as change
from services.apps.desired import Desired, from_body, to_body
from services.apps.manifest import Manifest
from services.apps.validate import validate

FULL = """\
name: a
image: b
listeners: [{name: web, guest_port: 80, public_port: 80}, {name: two, guest_port: 81, flow: tls, hold: 2s}]
environment: {A: yes}
storage: {persistent: {d: {container: /d, size_limit: 1GiB}}}
healthcheck: {http: {port: web}, ready: {exec: {command: [x]}}}
permissions: {capabilities: [CHOWN]}
resources: {limits: {cpu: 0.5}}
app_config: {a: [1, x, ~]}
x-y: {z: 1}
"""


def app(text: str = FULL) -> Desired:
    return change.install(validate(text).manifest, "sha256:1", {"web": 80, "two": 35000}, "boot", "i1")


def other(title: str = "Other") -> Manifest:
    return validate(FULL + f"title: {title}\n").manifest


def test_a_document_comes_back_as_it_was() -> None:
    desired = change.update(change.apply(app(), other(), "sha256:2", {"web": 1}, "boot", ""), "c:3", "", "")
    assert from_body(msgspec.json.decode(msgspec.json.encode(to_body(desired)))) == desired


def test_a_document_of_a_newer_version_is_not_acted_on() -> None:
    for more in ({"schema": 2}, {"unknown": 1}, {"ports": "x"}):
        body = {**to_body(app()), **more}
        if "unknown" in more:
            body["current"] = {**body["current"], "manifest": {**body["current"]["manifest"], "unknown": 1}}
        with pytest.raises(Invalid, match="document"):
            from_body(body)


def test_each_change_is_a_generation_and_no_change_is_none() -> None:
    desired = app()
    stopped = change.stop(desired, "")
    assert (stopped.running, stopped.generation) == (False, 2)
    assert change.stop(stopped, "") is stopped
    assert change.start(desired, "boot", "") is desired
    assert change.apply(desired, desired.current.manifest, "", {}, "boot", "") is desired
    assert change.enable(desired, True, "") is desired
    disabled = change.enable(desired, False, "")
    assert disabled.running and disabled.wanted(disabled.boot_id), "what runs goes on"
    assert not disabled.wanted("another boot")
    assert change.restart(desired, "boot", "").restarts == 1


def test_apply_keeps_the_version_before_and_revert_swaps() -> None:
    changed = change.apply(app(), other(), "sha256:2", {"web": 80}, "boot", "")
    back = change.revert(changed, {"web": 80}, "")
    assert back.current == app().current
    assert back.previous == changed.current
    assert change.revert(back, {}, "").current == changed.current
    with pytest.raises(Conflict, match="no earlier version"):
        change.revert(app(), {}, "")


def test_an_update_is_on_trial_until_it_is_judged() -> None:
    trial = change.update(app(), "c:2", "", "")
    assert trial.current == app().current
    with pytest.raises(Busy):
        change.update(trial, "c:3", "", "")
    pinned = change.pin(trial, "sha256:2")
    assert pinned.candidate is not None
    assert pinned.candidate.image_id == "sha256:2"
    won = change.promote(pinned, "updated")
    assert (won.current.manifest.image, won.candidate, won.note) == ("c:2", None, "updated")
    lost = change.give_up(pinned, "no")
    assert (lost.current, lost.candidate, lost.note) == (app().current, None, "no")
    assert change.revert(pinned, {}, "").candidate is None


def test_the_same_image_again_is_no_update() -> None:
    desired = app()
    assert change.update(desired, "", "sha256:1", "") is desired
    assert change.update(desired, "", "sha256:9", "").candidate is not None


def test_what_is_being_removed_cannot_be_changed_and_purge_is_not_taken_back() -> None:
    gone = change.uninstall(app(), True, "")
    assert gone.removing
    with pytest.raises(Busy):
        change.start(gone, "boot", "")
    assert change.uninstall(gone, False, "").purge


def test_differences_name_paths_and_hide_what_is_nobodys_business() -> None:
    changes = change.differences(
        app().current.manifest,
        validate(FULL.replace("A: yes", "A: secret").replace("guest_port: 80", "guest_port: 8080")).manifest,
    )
    assert changes == ("environment.A: (set) -> (set)", "listeners[0].guest_port: 80 -> 8080")


def test_a_default_that_is_written_out_differs_in_nothing() -> None:
    text = "name: a\nimage: b\nlisteners: [{name: web, guest_port: 80, public_port: auto, hold: 10s}]\n"
    stored = from_body(msgspec.json.decode(msgspec.json.encode(to_body(app(text))))).current.manifest
    assert change.differences(stored, validate(text).manifest) == ()
    other = validate(text + "title: Other\n").manifest
    assert change.differences(stored, other) == ("title: (default) -> Other",)
