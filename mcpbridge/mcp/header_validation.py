"""
Checks that the headers of a request of 2026-07-28 agree with its body
(basic/transports/streamable-http, "Request Metadata").

Knows header fields by name and value, requests, and `x-mcp-header` in a tool's
schema; must not know HTTP, nor where a schema comes from.  A server on stdio
sees no headers, so nobody else checks them.
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

#: Returns all values of the header field of that name, in any case, decoded as
#: latin-1; none where it is missing.
Headers = Callable[[str], list[str]]

#: The prefix of the header that an annotation names.
PARAM_PREFIX = "Mcp-Param-"
#: The keyword of an annotation in a schema ("Schema Extension").
ANNOTATION = "x-mcp-header"

#: In a large list of tools, the most tools, and the largest schema, that are read.
MAX_TOOLS = 10_000
MAX_SCHEMA_BYTES = 1024 * 1024

_OPTIONAL_SPACE = " \t"
# The characters of a field's value ("Value Encoding").
_VISIBLE = re.compile(r"[\t\x20-\x7e]*")
# Visible characters without white space, and no encoded value: what most fields have.
_PLAIN = re.compile(r"(?!=\?)[!-~]+")
_ENCODED = re.compile(r"=\?base64\?(.*)\?=")
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL = re.compile(r"(-?[0-9]{1,400})(?:\.0{1,400})?")

# The keywords of JSON Schema whose values are a schema, a list of schemas, or schemas by
# name.  An annotation below one of these is out of place.
_WITH_SCHEMA = frozenset(
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
_WITH_SCHEMAS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_WITH_NAMED_SCHEMAS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties"})


class Annotation(NamedTuple):
    """An argument that a header repeats: its path, the header, and the type in its schema."""

    path: tuple[str, ...]
    header: str
    kind: str


Annotations = tuple[Annotation, ...]


def headers_match(request: ModernRequest, headers: Headers) -> bool:
    """
    Tell quickly whether the headers of a request match its body exactly, unencoded.

    Nearly all do.  False proves nothing: `check_headers` decides about the others.
    """
    version, method, name = request.version, request.method, request.name
    return (
        headers("MCP-Protocol-Version") == [version]
        and headers("Mcp-Method") == [method]
        and (name is None or headers("Mcp-Name") == [name])
        and _PLAIN.fullmatch(f"{name or ''}{method}{version}") is not None
    )


def check_headers(request: ModernRequest, headers: Headers) -> None:
    """
    Check the headers that every request has ("Standard Request Headers").

    Raise `HeaderMismatch`, with the request's `ident`, where one is missing,
    repeated, not made of visible ASCII, or different from the body.
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
        # Today's clients leave it out here; the body says which task, and so which process.
        return
    if _decoded(name, _only(name, headers(name))) != expected:
        raise HeaderMismatch(f"{name} is not params.{NAME_BEARING_METHODS[request.method]}")


def check_params(request: ModernRequest, annotations: Annotations, headers: Headers) -> None:
    """
    Check the `Mcp-Param-*` of a `tools/call` against its arguments ("Server
    Behavior for Custom Headers").  Headers without an annotation are ignored.

    A header whose argument is missing or null is refused, too: a proxy that
    routes by it would go by something that the body does not say.  Raise
    `HeaderMismatch`, with the request's `ident`.
    """
    if not annotations:
        return
    try:
        arguments = _annotated_arguments(request.arguments, annotations)
        for annotation in annotations:
            _check_param(annotation, _at(arguments, annotation.path), headers)
    except HeaderMismatch as error:
        error.ident = request.id
        raise


def param_headers(arguments: msgspec.Raw | None, annotations: Annotations) -> list[tuple[str, str]]:
    """
    Return the `Mcp-Param-*` that a `tools/call` with these arguments must have, encoded.

    There are none for arguments that cannot be read: the server has to say what is wrong.
    """
    try:
        found = _annotated_arguments(arguments, annotations)
    except HeaderMismatch:
        return []
    values = [(each.header, _header_text(_at(found, each.path))) for each in annotations]
    return [(name, encoded(text)) for name, text in values if text is not None]


def encoded(text: str) -> str:
    """Return a text as the value of a field, in Base64 if need be ("Value Encoding")."""
    plain = _VISIBLE.fullmatch(text) and text == text.strip(_OPTIONAL_SPACE)
    if plain and _ENCODED.fullmatch(text) is None:
        return text
    content = base64.b64encode(text.encode("utf-8", "surrogatepass"))
    return f"=?base64?{content.decode('ascii')}?="


def _annotated_arguments(arguments: msgspec.Raw | None, annotations: Annotations) -> object:
    """Decode arguments; of large ones only what is annotated.  Raises `HeaderMismatch`."""
    if arguments is None:
        return None
    if len(arguments) > LARGE_BYTES:
        return _scalars_at(arguments, [annotation.path for annotation in annotations])
    return _value(arguments)


def _check_param(annotation: Annotation, argument: object, headers: Headers) -> None:
    name = annotation.header
    where = "params.arguments." + ".".join(annotation.path)
    text = _header_text(argument)
    if text is None:
        if headers(name):
            raise HeaderMismatch(f"{_ascii(name)} is present, but {_ascii(where)} has no value")
        return
    sent = _decoded(name, _only(name, headers(name)))
    if sent != text and not (annotation.kind == "integer" and _same_integer(sent, argument)):
        raise HeaderMismatch(f"{_ascii(name)} does not match {_ascii(where)}")


def _header_text(argument: object) -> str | None:
    """Return an argument as its header has it; None where there must be no header."""
    if isinstance(argument, bool):
        return "true" if argument else "false"
    if isinstance(argument, str):
        return argument
    return str(argument) if isinstance(argument, int | float) else None


def _same_integer(sent: str, argument: object) -> bool:
    """Tell whether both are one integer: `42.0` is 42 ("Server Validation")."""
    match = _DECIMAL.fullmatch(sent)
    return (
        match is not None
        and isinstance(argument, int | float)
        and not isinstance(argument, bool)
        and int(match[1]) == argument
    )


def _at(node: object, path: tuple[str, ...]) -> object:
    """Return the value at a path of properties; None where there is none."""
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _scalars_at(raw: msgspec.Raw, paths: list[tuple[str, ...]]) -> object:
    """Decode only the scalars at these paths of large arguments."""
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
    return {name: _scalars_at(found[name], rest) for name, rest in steps.items() if name in found}


def _value(raw: msgspec.Raw) -> object:
    try:
        return value(raw)
    except ValueError:
        raise _cannot_be_compared() from None


def _cannot_be_compared() -> HeaderMismatch:
    return HeaderMismatch("params.arguments cannot be compared with the headers")


# Header fields.


def _expect(headers: Headers, name: str, expected: str) -> None:
    if _only(name, headers(name)) != expected:
        raise HeaderMismatch(f"{name} does not match the body")


def _only(name: str, values: list[str]) -> str:
    """Return the single value of a field, without white space around it (RFC 9110, 5.5)."""
    if len(values) != 1:
        wrong = "appears more than once" if values else "is missing"
        raise HeaderMismatch(f"the header {name} {wrong}")
    text = values[0].strip(_OPTIONAL_SPACE)
    if _VISIBLE.fullmatch(text) is None:
        raise HeaderMismatch(f"{name} has characters that a header must not have")
    return text


def _decoded(name: str, text: str) -> str:
    """Decode a value that may be in Base64 ("Value Encoding")."""
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
    """Return a part of a schema, fit for the text of an error."""
    return text[:80].encode("ascii", "backslashreplace").decode("ascii")


# Annotations.


def annotated(result: bytes | msgspec.Raw) -> tuple[dict[str, Annotations], str | None]:
    """
    Read a result of `tools/list`: return the annotations by tool, for those
    that have some, and the `nextCursor`, None where this is the last page.

    A tool whose annotations break a rule is left out, as clients must drop it
    ("Schema Extension"); so is whatever is no tool.  Never raises.
    """
    page = members_of(result)
    found: dict[str, Annotations] = {}
    for tool in _tools(page.get("tools")):
        if isinstance(tool, dict) and isinstance(name := tool.get("name"), str):
            annotations = _annotations(tool.get("inputSchema"))
            # Of two tools with one name the last counts.
            found.pop(name, None)
            if annotations:
                found[name] = annotations
    return found, string_of(page.get("nextCursor"))


def _tools(raw: msgspec.Raw | None) -> Iterator[object]:
    """Yield the tools of a list; of a large one only the parts that annotations need."""
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
            is_read = (
                schema is not None
                and len(schema) <= MAX_SCHEMA_BYTES
                and _may_be_annotated(bytes(schema))
            )
            yield {
                "name": string_of(tool.get("name")),
                "inputSchema": value_of(schema) if is_read else None,
            }


def _may_be_annotated(schema: bytes) -> bool:
    """Tell whether a schema may have the keyword, perhaps with escapes."""
    return ANNOTATION.encode("ascii") in schema or b"\\u" in schema


def _annotations(schema: object) -> Annotations | None:
    """Return all annotations of a schema; None where one breaks a rule."""
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
    Yield each schema within a schema with the properties that lead to it;
    None where other keywords do.  Examples and defaults are no schemas.
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
            elif keyword in _WITH_SCHEMAS and isinstance(inner, list):
                waiting += [(None, each) for each in inner]
            elif keyword in _WITH_NAMED_SCHEMAS and isinstance(inner, dict):
                waiting += [(None, each) for each in inner.values()]
            elif keyword in _WITH_SCHEMA:
                waiting.append((None, inner))
