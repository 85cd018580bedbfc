"""
What the headers of a request of 2026-07-28 must say of its body
(basic/transports/streamable-http, "Request Metadata").

Knows header fields by name and value, requests, and of a tool's schema just
where `x-mcp-header` stands; must not know HTTP, nor where a schema comes from.
A backend on stdio sees no headers, so nobody else checks them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from mcpbridge.errors import HeaderMismatch, Refused
from mcpbridge.jsonrpc.members import members, members_of, string_of, value, value_of
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, at_once, elements
from mcpbridge.mcp.modern_request import NAME_BEARING_METHODS, TASK_METHODS, ModernRequest

#: All values of the header field of that name, in whatever case, decoded as
#: latin-1; none where it is missing.
Headers = Callable[[str], list[str]]

#: What stands before the name that an annotation gives.
PARAM_PREFIX = "Mcp-Param-"
#: The keyword of a schema that is one ("Schema Extension").
ANNOTATION = "x-mcp-header"

#: Of how many tools in a large list, and of schemas of what size, annotations are read.
MAX_TOOLS = 10_000
MAX_SCHEMA_BYTES = 1024 * 1024

_OWS = " \t"
# What a field's value may be ("Value Encoding").
_VISIBLE = re.compile(r"[\t\x20-\x7e]*")
_ENCODED = re.compile(r"=\?base64\?(.*)\?=")
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL = re.compile(r"(-?[0-9]{1,400})(?:\.0{1,400})?")

# The keywords of JSON Schema whose values are schemas, lists or tables of
# them; an annotation below one of these is out of place.
_ONE = frozenset(
    {
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_SEVERAL = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties"})


class Annotation(NamedTuple):
    """An argument that a header repeats: where it is, the header, the type of its schema."""

    path: tuple[str, ...]
    header: str
    kind: str


Annotations = tuple[Annotation, ...]


def check_headers(request: ModernRequest, headers: Headers) -> None:
    """
    Check the headers that each request has ("Standard Request Headers").

    Raises `HeaderMismatch`, with the request's `ident`, where one is missing,
    repeated, not made of visible ASCII, or says something else than the body.
    """
    try:
        _expect(headers, "MCP-Protocol-Version", request.version)
        _expect(headers, "Mcp-Method", request.method)
        if request.name is not None:
            _expect_name(request, request.name, headers)
    except HeaderMismatch as error:
        error.ident = request.id
        raise


def _expect_name(request: ModernRequest, expected: str, headers: Headers) -> None:
    name = "Mcp-Name"
    if request.method in TASK_METHODS and not headers(name):
        # Clients of today leave it out there; the body says which task, and so which process.
        return
    if _decoded(name, _only(headers, name)) != expected:
        raise HeaderMismatch(f"{name} is not params.{NAME_BEARING_METHODS[request.method]}")


def check_params(request: ModernRequest, annotations: Annotations, headers: Headers) -> None:
    """
    Check the `Mcp-Param-*` of a `tools/call` against its arguments ("Server
    Behavior for Custom Headers"); others than those of the annotations are
    for others.

    A header whose argument is missing or null is refused too: whoever routes
    by it would be told what the body does not say.  Raises `HeaderMismatch`,
    with the request's `ident`.
    """
    if not annotations:
        return
    try:
        arguments: object = request.arguments
        if isinstance(arguments, msgspec.Raw):
            if memoryview(arguments).nbytes > LARGE_BYTES:
                arguments = _some(arguments, [annotation.path for annotation in annotations])
            else:
                arguments = _value(arguments)
        for annotation in annotations:
            _check_param(annotation, _at(arguments, annotation.path), headers)
    except HeaderMismatch as error:
        error.ident = request.id
        raise


def _check_param(annotation: Annotation, argument: object, headers: Headers) -> None:
    name = annotation.header
    where = "params.arguments." + ".".join(annotation.path)
    text = _header_text(argument)
    if text is None:
        if headers(name):
            raise HeaderMismatch(
                f"{_ascii(name)} is there, but {_ascii(where)} has no value for it"
            )
        return
    said = _decoded(name, _only(headers, name))
    if said != text and not (annotation.kind == "integer" and _same_integer(said, argument)):
        raise HeaderMismatch(f"{_ascii(name)} is not what {_ascii(where)} says")


def _header_text(argument: object) -> str | None:
    """An argument as its header has it; None where there is to be none."""
    if isinstance(argument, bool):
        return "true" if argument else "false"
    if isinstance(argument, str):
        return argument
    return str(argument) if isinstance(argument, int | float) else None


def _same_integer(said: str, argument: object) -> bool:
    """Whether both are one integer: `42.0` is 42 ("Server Validation")."""
    match = _DECIMAL.fullmatch(said)
    return (
        match is not None
        and isinstance(argument, int | float)
        and not isinstance(argument, bool)
        and int(match[1]) == argument
    )


def _at(node: object, path: tuple[str, ...]) -> object:
    """What is at a path of properties; None where nothing is."""
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _some(raw: msgspec.Raw, paths: list[tuple[str, ...]]) -> object:
    """Of large arguments just what is at the end of these paths, if it is no array or object."""
    steps: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        if path:
            steps.setdefault(path[0], []).append(path[1:])
    if memoryview(raw)[0] not in b"[{":
        return _value(raw)
    if not steps or memoryview(raw)[0] != ord("{"):
        return None
    found = members(raw)
    if found is None:
        raise _cannot_be_compared()
    return {name: _some(found[name], rest) for name, rest in steps.items() if name in found}


def _value(raw: msgspec.Raw) -> object:
    try:
        return value(raw)
    except ValueError:
        raise _cannot_be_compared() from None


def _cannot_be_compared() -> HeaderMismatch:
    return HeaderMismatch("params.arguments cannot be compared with the headers")


# Header fields.


def _expect(headers: Headers, name: str, expected: str) -> None:
    if _only(headers, name) != expected:
        raise HeaderMismatch(f"{name} is not what the body says")


def _only(headers: Headers, name: str) -> str:
    """The one value of a field, without the white space around it (RFC 9110, section 5.5)."""
    values = headers(name)
    if len(values) != 1:
        wrong = "is there more than once" if values else "is missing"
        raise HeaderMismatch(f"the header {name} {wrong}")
    text = values[0].strip(_OWS)
    if _VISIBLE.fullmatch(text) is None:
        raise HeaderMismatch(f"{name} has characters that no header may have")
    return text


def _decoded(name: str, text: str) -> str:
    """What a value says that may be in Base64 ("Value Encoding")."""
    match = _ENCODED.fullmatch(text)
    if match is None:
        return text
    try:
        content = base64.b64decode(match[1], validate=True)
        # No second spelling, which others on the way might read otherwise.
        if base64.b64encode(content) == match[1].encode("ascii"):
            return content.decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        pass
    raise HeaderMismatch(f"{name} is no Base64 of UTF-8")


def _ascii(text: str) -> str:
    """A part of a schema, fit for the text of an error."""
    return text[:80].encode("ascii", "backslashreplace").decode("ascii")


# Annotations.


def annotated(result: bytes | msgspec.Raw) -> tuple[dict[str, Annotations], str | None]:
    """
    Of one result of `tools/list`, the tools that have annotations, by name,
    and the `nextCursor`, None where this is the last page.

    A tool is left out whose annotations break a rule: clients must drop it,
    and none knows which header to send ("Schema Extension").  So is whatever
    is no tool; nothing is raised.
    """
    page = members_of(result)
    found: dict[str, Annotations] = {}
    for tool in _tools(page.get("tools")):
        if isinstance(tool, dict) and isinstance(name := tool.get("name"), str):
            annotations = _annotations(tool.get("inputSchema"))
            # Of two with one name the last counts.
            found.pop(name, None)
            if annotations:
                found[name] = annotations
    return found, string_of(page.get("nextCursor"))


def _tools(raw: msgspec.Raw | None) -> Iterator[object]:
    """What is in a list of tools; of a large one that alone which may have annotations."""
    whole = b"" if raw is None else bytes(raw)
    if len(whole) <= LARGE_BYTES:
        found = value_of(raw)
        yield from found if isinstance(found, list) else []
    elif _may_be_annotated(whole):
        try:
            spans = at_once(elements(whole, MAX_TOOLS, size=len(whole)))
        except Refused:
            return
        for begin, end in spans:
            tool = members_of(whole[begin:end])
            schema = tool.get("inputSchema")
            size = 0 if schema is None else memoryview(schema).nbytes
            readable = 0 < size <= MAX_SCHEMA_BYTES and _may_be_annotated(bytes(schema or b""))
            yield {
                "name": string_of(tool.get("name")),
                "inputSchema": value_of(schema) if readable else None,
            }


def _may_be_annotated(schema: bytes) -> bool:
    """Whether the keyword may stand there, perhaps with escapes."""
    return ANNOTATION.encode("ascii") in schema or b"\\u" in schema


def _annotations(schema: object) -> Annotations | None:
    """All annotations of a schema; None where one is against the rules."""
    found: dict[str, Annotation] = {}
    for path, node in _schemas(schema):
        if ANNOTATION not in node:
            continue
        name, kind = node[ANNOTATION], node.get("type")
        if not path or not isinstance(name, str) or _TOKEN.fullmatch(name) is None:
            return None
        if kind not in ("string", "integer", "boolean") or name.lower() in found:
            return None
        found[name.lower()] = Annotation(path, PARAM_PREFIX + name, kind)
    return tuple(found.values())


def _schemas(root: object) -> Iterator[tuple[tuple[str, ...] | None, dict[str, object]]]:
    """
    Each schema within a schema, and the properties that lead to it; None
    where other keywords do.  Examples, defaults and the like are no schemas.
    """
    waiting: list[tuple[tuple[str, ...] | None, object]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if not isinstance(node, dict):
            continue
        yield path, node
        for keyword, inner in node.items():
            if keyword == "properties" and isinstance(inner, dict):
                for name, each in inner.items():
                    waiting.append((None if path is None else (*path, name), each))
            elif keyword in _SEVERAL and isinstance(inner, list):
                waiting += [(None, each) for each in inner]
            elif keyword in _NAMED and isinstance(inner, dict):
                waiting += [(None, each) for each in inner.values()]
            elif keyword in _ONE:
                waiting.append((None, inner))
