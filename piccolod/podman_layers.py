"""Layers of podman's storage that belong to nobody. Pure.

A container that podman has forgotten leaves its read-write layer on the disk, where nobody would ever look for it.
Files and fields are those of containers/storage, as podman 4.3 and 5.4 write them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]


def orphans(layers: Iterable[Record], images: Iterable[Record]) -> list[str]:
    """Ids of the layers that no image is made of, children before their parents."""
    parents = {str(layer["id"]): str(layer.get("parent") or "") for layer in layers}
    used: set[str] = set()
    for image in images:
        for top in (image.get("layer"), *(image.get("mapped-layers") or ())):
            used.update(_line(str(top or ""), parents))
    unused = [layer for layer in parents if layer not in used]
    return sorted(unused, key=lambda layer: len(_line(layer, parents)), reverse=True)


def claims(layers: Iterable[str]) -> list[dict[str, Any]]:
    """Records of containers that have these layers: removing such a container removes its layer, by podman's own hand."""
    return [{"id": layer, "image": "", "layer": layer, "created": "1970-01-01T00:00:00Z"} for layer in layers]


def _line(layer: str, parents: Mapping[str, str]) -> list[str]:
    """The layer and everything that it lies on."""
    line: list[str] = []
    while layer in parents and layer not in line:
        line.append(layer)
        layer = parents[layer]
    return line
