"""JSON, XML and bracketed forms as one tree: objects, lists, texts, numbers, None. Knows no provider.

Which of the three a body is shows in its first character; the content type is not asked. Attributes are ordinary
names, whatever is empty is None, and nothing is nested deeper than `DEEPEST`.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring

from workers.errors import Malformed
from workers.reading import Wild, read_json, remembered

DEEPEST: Final = 32
MOST_FIELDS: Final = 10_000

ATTRIBUTES: Final = "@attributes"
"""Where PHP puts the attributes of an XML element that it turns into JSON."""
TEXT: Final = "#text"
"""Where the text of an XML element goes that has attributes or children as well."""

_NAME: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_BRACKETS: Final = re.compile(r"\[([^\[\]]*)\]")
_CHARSET: Final = re.compile(r"charset=\"?([\w.:-]{1,40})", re.ASCII | re.IGNORECASE)


def read_tree(body: bytes, content_type: str | None = None, path: str = "body") -> Wild:
    """The tree of a body; of the content type only the charset of a form is taken. Raises Malformed."""
    document = body.removeprefix(BOM_UTF8).lstrip()
    if document.startswith((b"{", b"[")):
        return tree(read_json(document, path).value, path)
    if document.startswith(b"<"):
        return tree(_from_xml(document, path), path)
    return tree(_from_form(document, content_type, path), path)


def tree(value: Any, path: str = "body") -> Wild:
    """A parsed document with its attributes merged and its emptiness made None. Raises Malformed."""
    return Wild(_even(value, path), path)


def _even(value: Any, path: str, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise _too_deep(path)
    if isinstance(value, str):
        return None if not value or value.isspace() else value
    if isinstance(value, dict):
        return {name: _even(inner, path, depth + 1) for name, inner in _merged(value).items()} or None
    if isinstance(value, list):
        return [_even(inner, path, depth + 1) for inner in value] or None
    return value


def _merged(value: dict[str, Any]) -> dict[str, Any]:
    """An attribute stands before a child of the same name."""
    if ATTRIBUTES not in value:
        return value
    attributes = value[ATTRIBUTES]
    if attributes and not isinstance(attributes, dict):
        return value
    return {name: inner for name, inner in value.items() if name != ATTRIBUTES} | (attributes or {})


def _too_deep(path: str) -> Malformed:
    return Malformed(f"{path}: nested deeper than {DEEPEST}")


# --- XML -----------------------------------------------------------------------------------------------------


def _from_xml(document: bytes, path: str) -> Any:
    """What is inside the root. A DTD is refused, and with it every entity of the document's own."""
    try:
        root = fromstring(document, forbid_dtd=True)
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise Malformed(f"{path}: expected XML without a DTD") from error
    return _element(root, path)


def _element(element: Element, path: str, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise _too_deep(path)
    text = (element.text or "").strip()
    if not element.attrib and not len(element):
        return text
    named: dict[str, list[Any]] = {}
    for child in element:
        named.setdefault(child.tag, []).append(_element(child, path, depth + 1))
    inner = {name: many if len(many) > 1 else many[0] for name, many in named.items()} | element.attrib
    return {TEXT: text, **inner} if text else inner


# --- forms ---------------------------------------------------------------------------------------------------


Keys = Sequence[str]


def _from_form(document: bytes, content_type: str | None, path: str) -> Any:
    root: dict[str, Any] = {}
    for keys, value in _fields(document, content_type, path):
        if keys is None:
            raise Malformed(f"{path}: the brackets of a form field's name do not pair")
        if len(keys) > DEEPEST:
            raise _too_deep(path)
        _put(root, keys, value, path)
    return _listed(root)


def _fields(document: bytes, content_type: str | None, path: str) -> list[tuple[Keys | None, str]]:
    """Keys and values. Bytes that are UTF-8 are read as such; the header's charset counts where they are not."""
    named = _CHARSET.search(content_type or "")
    for charset in ("utf-8", named[1] if named else "utf-8"):
        try:
            return _decoded(document.decode(charset), charset)
        except (ValueError, LookupError):
            continue
    raise Malformed(f"{path}: expected JSON, XML, or at most {MOST_FIELDS} form fields in a known charset")


def _decoded(form: str, charset: str) -> list[tuple[Keys | None, str]]:
    """As `parse_qsl` takes a form apart, but for the names, which are the same in every delivery and are read once.
    Raises ValueError or LookupError."""
    if form.count("&") >= MOST_FIELDS:
        raise ValueError("too many fields")
    keys = _keys_in_utf8 if charset == "utf-8" else partial(_keys, charset=charset)
    fields = (field.partition("=") for field in form.split("&") if field)
    return [(keys(name), unquote_plus(value, charset, "strict")) for name, _, value in fields]


@remembered
def _keys_in_utf8(name: str) -> Keys | None:
    """The names are the same in every form; to take them apart would be half of the work."""
    return _keys(name, "utf-8")


def _keys(name: str, charset: str) -> Keys | None:
    """`a[b][0]` as a, b, 0; an empty bracket as an empty key. None where the brackets do not pair."""
    match = _NAME.fullmatch(unquote_plus(name, charset, "strict"))
    return match and (match[1], *_BRACKETS.findall(match[2]))


def _put(node: dict[str, Any], keys: Keys, value: str, path: str) -> None:
    """An empty key is the next place in a list, as PHP reads it."""
    *way, last = keys
    for key in way:
        node = node.setdefault(key or str(len(node)), {})
        if not isinstance(node, dict):
            raise Malformed(f"{path}: a form field is both a value and an object")
    last = last or str(len(node))
    if last in node:
        raise Malformed(f"{path}: a form field is there twice")
    node[last] = value


def _listed(node: Any) -> Any:
    """An object whose names are 0, 1, 2 … is a list, in the order of its names."""
    if not isinstance(node, dict):
        return node
    inner = {name: _listed(value) for name, value in node.items()}
    if "0" not in inner:
        return inner
    places = [str(place) for place in range(len(inner))]
    return [inner[place] for place in places] if inner.keys() == set(places) else inner
