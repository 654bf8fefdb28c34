from __future__ import annotations

from pathlib import Path

from services.router.route import Listener, Mode, Route, Target
from services.router.saved import SavedRoutes

ROUTE = Route(
    app="notes",
    mode=Mode.LOCAL,
    epoch=4,
    resource="app:notes",
    token=9,
    listeners=(Listener(name="web", public_port=35000),),
    targets=(Target(listener="web", address="10.88.0.2", port=80),),
)


def saved(folder: Path) -> SavedRoutes:
    routes = SavedRoutes(folder / "routes" / "router.0")
    routes.prepare()
    return routes


def test_what_was_kept_is_loaded_again_and_what_was_dropped_is_not(tmp_path: Path) -> None:
    routes = saved(tmp_path)
    routes.keep(ROUTE)
    assert saved(tmp_path).load() == ([ROUTE], [])
    routes.drop("notes")
    routes.drop("notes")
    assert saved(tmp_path).load() == ([], [])


def test_a_file_that_is_no_route_is_named_and_removed_and_the_others_are_loaded(tmp_path: Path) -> None:
    saved(tmp_path).keep(ROUTE)
    folder = tmp_path / "routes" / "router.0"
    (folder / "torn.json").write_bytes((folder / "notes.json").read_bytes()[:40])
    (folder / "garbage.json").write_bytes(b"\x00\xff")
    (folder / "other.json").write_bytes((folder / "notes.json").read_bytes())
    (folder / "half.new").write_bytes(b"left by a kill in the middle")
    assert saved(tmp_path).load() == ([ROUTE], ["garbage.json", "other.json", "torn.json"])
    assert saved(tmp_path).load() == ([ROUTE], [])


def test_no_folder_is_no_route(tmp_path: Path) -> None:
    assert SavedRoutes(tmp_path / "absent").load() == ([], [])
