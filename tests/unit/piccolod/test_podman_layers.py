"""Which layers belong to nobody."""

from __future__ import annotations

import itertools

from piccolod.podman_layers import claims, orphans


def layer(name: str, parent: str = "") -> dict[str, str]:
    return {"id": name, "parent": parent} if parent else {"id": name}


LAYERS = [layer("base"), layer("top", "base"), layer("written", "top"), layer("mapped", "base"), layer("pulled")]


def test_what_an_image_is_made_of_is_never_an_orphan() -> None:
    images = [{"layer": "top", "mapped-layers": ["mapped"]}]
    assert set(orphans(LAYERS, images)) == {"written", "pulled"}


def test_one_image_is_enough_to_keep_what_others_no_longer_need() -> None:
    assert set(orphans(LAYERS, [{"layer": "base"}])) == {"top", "written", "mapped", "pulled"}
    assert orphans(LAYERS, [{"layer": "written"}, {"layer": "mapped"}, {"layer": "pulled"}]) == []


def test_an_image_of_a_manifest_list_has_no_layer() -> None:
    assert len(orphans(LAYERS, [{"id": "list"}, {"layer": ""}, {"mapped-layers": None}])) == len(LAYERS)


def test_children_come_before_their_parents_in_whatever_order_they_are_listed() -> None:
    for order in itertools.permutations(LAYERS):
        found = orphans(order, [])
        assert found.index("written") < found.index("top") < found.index("base")
        assert found.index("mapped") < found.index("base")


def test_a_circle_of_parents_ends() -> None:
    assert set(orphans([layer("a", "b"), layer("b", "a")], [])) == {"a", "b"}


def test_each_claim_names_its_layer() -> None:
    assert [(claim["id"], claim["layer"]) for claim in claims(["x", "y"])] == [("x", "x"), ("y", "y")]
