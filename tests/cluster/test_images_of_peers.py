"""An image that one node has comes to the others by itself, so that each could run what stands on it."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator

import pytest

from tests.bed import faults
from tests.bed.apps import answers, could_lead, home
from tests.bed.cluster import Cluster
from tests.bed.forming import asked, asking, said, wait_leader
from tests.bed.machine import Machine
from tests.node import DEMO_IMAGE, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bed(formed: Callable[[int], Cluster]) -> Cluster:
    return formed(3)


@pytest.fixture(autouse=True)
def nothing_left(bed: Cluster) -> Iterator[None]:
    yield
    for machine in bed.machines:
        if machine.is_on:
            until(
                lambda machine=machine: not list((machine.state / "uploads").iterdir()), f"no archive is left on {machine.name}"
            )  # type: ignore[misc]


def follower(bed: Cluster) -> Machine:
    leading = wait_leader(bed)
    return next(machine for machine in bed.machines if machine is not leading)


def ids(machine: Machine, name: str) -> list[str]:
    return [each["id"] for each in machine.get("/images") if name in each["names"]]


def test_an_image_is_pushed_to_every_node_that_lacks_it(bed: Cluster) -> None:
    first, *others = bed.machines
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"))
    added = first.api("POST", "/images?kind=import&name=localhost/extra:1", body.getvalue(), kind="application/x-tar")
    assert added.status == 201, added
    told = json.loads(said(first, "images", "push-peers", "extra:1", "-o", "json"))
    assert sorted((each["node"], each["had"], each["error"]) for each in told) == [("n2", False, ""), ("n3", False, "")]
    assert {tuple(ids(machine, "localhost/extra:1")) for machine in bed.machines} == {(added.json[0]["id"],)}
    assert said(others[0], "images", "push-peers", added.json[0]["id"][:20]).count("had it") == 2
    missing = first.ctl("images", "push-peers", "localhost/none:1")
    assert (missing.returncode, "no image localhost/none:1" in missing.stderr) == (3, True)


@pytest.mark.parametrize("victim", ["api", "apps"])
@pytest.mark.parametrize("side", ["giver", "taker"])
def test_a_transfer_that_is_cut_leaves_nothing_and_is_done_the_next_time(bed: Cluster, victim: str, side: str) -> None:
    giver, taker, _ = bed.machines
    name = f"localhost/{side}-{victim}:1"
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        entry = tarfile.TarInfo("noise")
        entry.size = 96 << 20
        tar.addfile(entry, io.BytesIO(random.Random(name).randbytes(entry.size)))
    path = f"/images?kind=import&name={name}"
    assert giver.api("POST", path, body.getvalue(), kind="application/x-tar", timeout_s=60).status == 201
    pushing = asking(lambda: giver.ctl("images", "push-peers", name, timeout_s=120))
    hit = giver if side == "giver" else taker
    until(lambda: any(file.stat().st_size for file in (hit.state / "uploads").iterdir()), "a part of it is there", 30, 0.005)
    faults.kill(hit, victim)
    pushing.join(130)
    assert not pushing.is_alive()
    for machine in bed.machines:
        until(machine.all_ready, f"{machine.name} is well", 30)
        until(lambda machine=machine: not list((machine.state / "uploads").iterdir()), "nothing is left of it", 30)  # type: ignore[misc]
    said(giver, "images", "push-peers", name, timeout_s=120)
    assert all(ids(machine, name) for machine in bed.machines)


def test_an_app_whose_image_nobody_has_says_so(bed: Cluster) -> None:
    leading = wait_leader(bed)
    text = leading.demo_manifest("none").replace(DEMO_IMAGE, "localhost/none:1")
    assert leading.api("POST", "/apps", text, kind="application/yaml").status == 201
    until(
        lambda: "no other node has image localhost/none:1, and `pull` is never" in leading.app("none")["reason"],
        "it says why",
        20,
    )
    said(leading, "apps", "uninstall", "none", "-y")


def test_an_app_whose_image_one_node_has_runs_and_fails_over(bed: Cluster) -> None:
    """Installed from a follower, the only one that has it: the kernel's leader has to name it first."""
    having = follower(bed)
    bed.load_demo_image(having)
    (known,) = ids(having, DEMO_IMAGE)
    assert having.api("POST", "/apps", having.demo_manifest("hello"), kind="application/yaml").status == 201
    until(lambda: asked(having, "GET", "/apps/hello").status == 200, "the leader's word comes back", 10)
    port = having.public_port("hello")
    for machine in bed.machines:
        until(lambda machine=machine: answers(machine, port), f"{machine.name} answers", 30)  # type: ignore[misc]
    for machine in bed.machines:
        until(lambda machine=machine: ids(machine, DEMO_IMAGE) == [known], f"{machine.name} has it", 20)  # type: ignore[misc]
    leading = home(bed, "hello")
    assert leading is not None
    others = [machine for machine in bed.machines if machine is not leading]
    for machine in others:
        until(lambda machine=machine: could_lead(machine, leading, "hello"), f"{machine.name} could lead it", 20)  # type: ignore[misc]
    faults.power_off(leading)
    for machine in others:
        until(lambda machine=machine: answers(machine, port), f"{machine.name} answers again", 20)  # type: ignore[misc]
