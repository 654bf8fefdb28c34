"""The OpenAPI document as one page for people: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any, Final

_METHODS: Final = ("get", "head", "post", "put", "delete")

STYLE: Final = """\
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; }
details { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: 6px; margin: .4rem 0; }
summary { cursor: pointer; padding: .4rem .8rem; overflow-wrap: anywhere; }
details > div { padding: 0 .8rem .6rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { overflow-x: auto; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; }
"""


def render(document: dict[str, Any]) -> str:
    by_tag: dict[str, list[str]] = {}
    for path, item in sorted(document["paths"].items()):
        for method in _METHODS:
            if operation := item.get(method):
                tag = (operation.get("tags") or ["other"])[0]
                by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    title = escape(document["info"]["title"])
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in sorted(by_tag.items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/api/docs.css"></head>'
        f"<body><h1>{title} {escape(document['info']['version'])}</h1>"
        f"<p>{escape(document['info'].get('description', ''))}</p>"
        '<p>For programs: <a href="/api/openapi.json">/api/openapi.json</a></p>'
        f"{sections}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{escape(each['in'])}</td>"
        f"<td>{escape(_type(each.get('schema', {})))}</td></tr>"
        for each in operation.get("parameters") or ()
    )
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer.get('description', ''))}</td>"
        f"<td>{escape(', '.join(_content(answer)))}</td></tr>"
        for status, answer in sorted(operation.get("responses", {}).items())
    )
    body = ", ".join(f"{kind}: {_type(media.get('schema', {}))}" for kind, media in _media(operation).items())
    return (
        f'<details><summary><span class="method">{method.upper()}</span> <code>{escape(path)}</code></summary><div>'
        f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>"
        + (f"<p>Body: <code>{escape(body)}</code></p>" if body else "")
        + (f"<table><tr><th>parameter</th><th>in</th><th>type</th></tr>{rows}</table>" if rows else "")
        + f"<table><tr><th>status</th><th>meaning</th><th>content</th></tr>{answers}</table></div></details>"
    )


def _media(operation: dict[str, Any]) -> dict[str, Any]:
    return (operation.get("requestBody") or {}).get("content") or {}


def _content(answer: dict[str, Any]) -> list[str]:
    return [f"{kind} {_type(media.get('schema', {}))}".strip() for kind, media in (answer.get("content") or {}).items()]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"[{_type(schema.get('items', {}))}]"
    kinds = schema.get("oneOf") or schema.get("anyOf")
    if kinds:
        return " | ".join(filter(None, (_type(kind) for kind in kinds)))
    found = schema.get("type", "")
    return " | ".join(found) if isinstance(found, list) else str(found)
