"""What headers say of the body, and what becomes of a request where they say something else."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpbridge.errors import HeaderMismatch
from mcpbridge.jsonrpc.envelope import peek, peek_again
from mcpbridge.jsonrpc.members import encode
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.header_validation import (
    MAX_SCHEMA_BYTES,
    MAX_TOOLS,
    Annotation,
    Annotations,
    annotated,
    check_headers,
    check_params,
    headers_match,
    param_headers,
)
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    MODERN_PROTOCOL_VERSIONS,
    PROTOCOL_VERSION,
    ModernRequest,
    read_request,
)

VERSION = MODERN_PROTOCOL_VERSIONS[-1]
META = {PROTOCOL_VERSION: VERSION, CLIENT_CAPABILITIES: {}}
CALL = {"MCP-Protocol-Version": VERSION, "Mcp-Method": "tools/call", "Mcp-Name": "add"}
ABSENT = object()
NO_NAMES: list[object] = ["", "a b", "a:b", "a\r", "a\n", "\u00e4", None, 7, []]
NO_PRIMITIVES: list[object] = ["number", "object", "array", "null", None, ["string"], {}, "date"]


class Fields:
    """The fields of a request, as a web server has them."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self.fields = {
            name.lower(): [each] if isinstance(each, str) else each
            for name, each in fields.items()
            if each is not ABSENT
        }

    def __call__(self, name: str) -> list[str]:
        found = self.fields.get(name.lower(), [])
        assert isinstance(found, list)
        return found


def request(method: str = "tools/call", ident: object = 5, **params: Any) -> ModernRequest:
    message = {"jsonrpc": "2.0", "id": ident, "method": method, "params": {"_meta": META, **params}}
    line = json.dumps(message).encode()
    envelope = peek(line) or peek_again(line)
    assert envelope is not None
    return read_request(with_envelope(line, envelope), version_header=VERSION)


def base64_of(text: str | bytes) -> str:
    content = text.encode() if isinstance(text, str) else text
    return f"=?base64?{base64.b64encode(content).decode()}?="


def mismatch(asked: ModernRequest, fields: Mapping[str, object]) -> str:
    with pytest.raises(HeaderMismatch) as caught:
        check_headers(asked, Fields(fields))
    error = caught.value
    assert (error.status, error.code, error.ident) == (400, -32020, asked.id)
    assert json.loads(error.body())["error"]["message"] == str(error)
    assert not headers_match(asked, Fields(fields))
    return str(error)


# Standard headers.


@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_names_of_headers_have_no_case(spell: Any) -> None:
    check_headers(request(name="add"), Fields({spell(name): each for name, each in CALL.items()}))


def test_usual_headers_agree_with_the_body() -> None:
    assert headers_match(request(name="add"), Fields(CALL))
    without_name = {**CALL, "Mcp-Method": "tools/list", "Mcp-Name": ABSENT}
    assert headers_match(request("tools/list"), Fields(without_name))


def test_a_name_that_looks_like_base64_must_be_encoded() -> None:
    """It does not agree with itself."""
    name = base64_of("add")
    mismatch(request(name=name), {**CALL, "Mcp-Name": name})
    check_headers(request(name=name), Fields({**CALL, "Mcp-Name": base64_of(name)}))


@pytest.mark.parametrize("value", ["  add ", "\tadd\t", "add"])
def test_white_space_around_a_value_is_ignored(value: str) -> None:
    """RFC 9110, section 5.5."""
    check_headers(request(name="add"), Fields({name: f" {each}\t" for name, each in CALL.items()}))
    check_headers(request(name="add"), Fields({**CALL, "Mcp-Name": value}))


@pytest.mark.parametrize("name", CALL)
@pytest.mark.parametrize(
    "wrong",
    [
        ABSENT,
        [],
        "",
        "another",
        "ADD",
        "TOOLS/CALL",
        "2025-11-25",
        ["add", "add"],
        ["tools/call", "tools/call"],
        [VERSION, VERSION],
        "add\x00",
        "add\x7f",
        "\xe4dd",
        "a\ndd",
        "=?base64?YWRk?=x",
    ],
)
def test_a_header_that_is_missing_or_wrong(name: str, wrong: object) -> None:
    """streamable-http, "Server Validation": 400 and -32020."""
    assert name in mismatch(request(name="add"), {**CALL, name: wrong})


@pytest.mark.parametrize(
    ("values", "words"), [(ABSENT, "is missing"), (["add", "add"], "appears more than once")]
)
def test_a_refusal_says_whether_a_header_is_missing_or_repeated(values: object, words: str) -> None:
    assert mismatch(request(name="add"), {**CALL, "Mcp-Name": values}).endswith(words)


@pytest.mark.parametrize("method", ["tools/list", "server/discover", "x"])
def test_a_method_without_a_name_needs_none(method: str) -> None:
    fields = {**CALL, "Mcp-Method": method, "Mcp-Name": ABSENT}
    check_headers(request(method), Fields(fields))
    check_headers(request(method, name="add"), Fields(fields))
    assert "Mcp-Method" in mismatch(request(method), CALL)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "x", "uri": "no"}),
        ("prompts/get", {"name": "x", "uri": "no"}),
        ("resources/read", {"uri": "x", "name": "no"}),
    ],
)
def test_the_parameter_that_mcp_name_repeats(method: str, params: dict[str, str]) -> None:
    fields = {**CALL, "Mcp-Method": method, "Mcp-Name": "x"}
    check_headers(request(method, **params), Fields(fields))
    assert "Mcp-Name" in mismatch(request(method, **params), {**fields, "Mcp-Name": "no"})


@pytest.mark.parametrize(
    "name", ["add", "caf\u00e9 \u4e16", " padded ", "", "a\nb", "=?base64?literal?="]
)
def test_a_name_in_base64(name: str) -> None:
    """streamable-http, "Value Encoding"."""
    check_headers(request(name=name), Fields({**CALL, "Mcp-Name": base64_of(name)}))
    mismatch(request(name=name + "x"), {**CALL, "Mcp-Name": base64_of(name)})


@pytest.mark.parametrize(
    "encoded",
    [
        "=?base64?SGVsbG8?=",  # no padding
        "=?base64?SGVsbG9=?=",  # bits that are not of it
        "=?base64?SGVs!!!bG8=?=",
        "=?base64?SGVs bG8=?=",
        "=?base64?=?=",
        base64_of(b"\xff"),
        base64_of(b"\xed\xa0\x80"),
    ],
)
def test_invalid_base64_is_refused(encoded: str) -> None:
    for name in ("Hello", encoded, "\ud800", ""):
        mismatch(request(name=name), {**CALL, "Mcp-Name": encoded})


@pytest.mark.parametrize(
    "literal", ["=?BASE64?YWRk?=", "=?base64?YWRk", "YWRk?=", "=?utf-8?YWRk?="]
)
def test_a_value_without_the_base64_marker_is_literal(literal: str) -> None:
    check_headers(request(name=literal), Fields({**CALL, "Mcp-Name": literal}))
    mismatch(request(name="add"), {**CALL, "Mcp-Name": literal})


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())), st.text())
@example("\ud800", "=?base64?7aCA?=")
def test_a_name_passes_as_a_client_writes_it_and_no_other_does(name: str, other: str) -> None:
    plain = name.isascii() and name.isprintable() and name == name.strip()
    plain = plain and not (name.startswith("=?base64?") and name.endswith("?="))
    try:
        written = name if plain else base64_of(name)
    except UnicodeEncodeError:
        written = other
        mismatch(request(name=name), {**CALL, "Mcp-Name": written})
    else:
        check_headers(request(name=name), Fields({**CALL, "Mcp-Name": written}))
    if other not in (name, written):
        mismatch(request(name=other), {**CALL, "Mcp-Name": written if other != name else ""})


# Annotations.


#: A tool that makes a list of tools a large one, which is read otherwise; and none.
PADDINGS: list[list[object]] = [[], [{"name": "padding", "description": "x" * LARGE_BYTES}]]


def listing(*tools: object, **more: object) -> bytes:
    return json.dumps({"tools": list(tools), "resultType": "complete", **more}).encode()


def tool(properties: object, name: object = "t", **more: object) -> dict[str, object]:
    return {"name": name, "inputSchema": {"type": "object", "properties": properties, **more}}


def param(header: object = "Region", kind: object = "string", **more: object) -> dict[str, object]:
    return {"type": kind, "x-mcp-header": header, **more}


@pytest.mark.parametrize("padding", PADDINGS)
def test_annotations_are_found_however_deep(padding: list[object]) -> None:
    schema = {
        "a": param("A"),
        "b": {
            "type": "object",
            "properties": {"c": param("C", "integer"), "properties": param("P")},
        },
        "d": param("D", "boolean", default={"x-mcp-header": 7}, examples=[{"x-mcp-header": ""}]),
        "e": {"type": "string"},
        "f": True,
    }
    tools = [*padding, tool(schema), tool({"a": {}}, "other"), tool({"a": {}}, "n\ud800")]
    found, cursor = annotated(listing(*tools, nextCursor="n"))
    assert cursor == "n"
    assert set(found) == {"t"}
    assert set(found["t"]) == {
        Annotation(("a",), "Mcp-Param-A", "string"),
        Annotation(("b", "c"), "Mcp-Param-C", "integer"),
        Annotation(("b", "properties"), "Mcp-Param-P", "string"),
        Annotation(("d",), "Mcp-Param-D", "boolean"),
    }
    assert annotated(msgspec.Raw(listing(tool(schema))))[0] == found


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    "schema",
    [
        *(tool({"a": param(each)}) for each in NO_NAMES),
        *(tool({"a": param("A", each)}) for each in NO_PRIMITIVES),
        tool({"a": param("Same"), "b": param("sAME")}),
        tool({"a": {"properties": {"b": param("Same")}}, "c": param("same")}),
        tool({}, **{"x-mcp-header": "Root", "type": "string"}),
        *(
            tool({"a": param("A"), "b": {keyword: param("B")}})
            for keyword in (
                "items",
                "not",
                "if",
                "then",
                "else",
                "additionalProperties",
                "contains",
            )
        ),
        *(
            tool({"a": param("A"), "b": {keyword: [True, param("B")]}})
            for keyword in ("oneOf", "anyOf", "allOf", "prefixItems", "items")
        ),
        *(
            tool({"a": param("A")}, **{keyword: {"b": param("B")}})
            for keyword in ("$defs", "definitions", "dependentSchemas", "patternProperties")
        ),
        tool({"a": {"items": {"properties": {"b": param("B")}}}}),
    ],
)
def test_a_tool_with_an_annotation_against_the_rules_is_left_out(
    schema: object, padding: list[object]
) -> None:
    """streamable-http, "Schema Extension": its clients drop the tool and send no headers."""
    assert set(annotated(listing(*padding, schema, tool({"a": param()}, "good")))[0]) == {"good"}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [None, True, 7, "a", [], {}, [7], {"a": 1}, [[]], "\ud800"])
def test_schemas_of_any_shape_are_read(shape: object, padding: list[object]) -> None:
    good = tool({"a": param()}, "good")
    for odd in (
        shape,
        {"name": shape},
        {"name": "t", "inputSchema": shape},
        tool(shape),
        tool({"a": shape}),
        tool({"a": {"properties": shape, "allOf": shape, "$defs": shape, "not": shape}}),
    ):
        assert set(annotated(listing(*padding, odd, good))[0]) == {"good"}
    assert annotated(json.dumps(shape).encode()) == ({}, None)
    found, cursor = annotated(json.dumps({"tools": shape, "nextCursor": shape}).encode())
    assert found == {}
    assert cursor == (shape if isinstance(shape, str) else None)


@pytest.mark.parametrize(
    "result", [b"", b"{", b'{"tools":[1e999]}', b'{"tools":%b}' % (b"[" * 100_000)]
)
def test_unreadable_results_have_no_annotations(result: bytes) -> None:
    assert annotated(result) == ({}, None)


@pytest.mark.parametrize("padding", PADDINGS)
def test_of_two_tools_with_one_name_the_last_counts(padding: list[object]) -> None:
    one, other = tool({"a": param("A")}), tool({"b": param("B")})
    assert annotated(listing(*padding, one, other))[0] == annotated(listing(other))[0]
    assert annotated(listing(*padding, one, tool({})))[0] == {}


@pytest.mark.parametrize(("more", "names"), [(0, {"t"}), (1, set())])
def test_max_tools(more: int, names: set[str]) -> None:
    """MAX_TOOLS: of a longer list nothing is read."""
    tools: list[object] = [{"name": "x"}] * (MAX_TOOLS - 1 + more)
    assert set(annotated(listing(*tools, tool({"a": param()})))[0]) == names


@pytest.mark.parametrize(("more", "names"), [(0, {"t"}), (1, set())])
def test_max_schema_bytes(more: int, names: set[str]) -> None:
    missing = MAX_SCHEMA_BYTES - len(encode(tool({"a": param()}, title="")["inputSchema"])) + more
    line = encode({"tools": [tool({"a": param()}, title="x" * missing)]})
    assert set(annotated(line)[0]) == names


def test_a_schema_of_any_depth() -> None:
    node: dict[str, object] = param("Deep")
    for _ in range(300):
        node = {"properties": {"a": node}}
    found = annotated(listing({"name": "t", "inputSchema": node}))[0]["t"]
    assert found[0].path == ("a",) * 300


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.text() | st.sampled_from(["string", "Region"]),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "x-mcp-header", "properties", "items", "allOf", "$defs", "a"]
                ),
                inner,
            )
        ),
    )
)
def test_any_schema_is_read(schema: object) -> None:
    annotated(listing({"name": "t", "inputSchema": schema}))


# Custom headers.

ONE: dict[str, Annotations] = {
    kind: (Annotation(("a",), "Mcp-Param-A", kind),) for kind in ("string", "integer", "boolean")
}


#: What has no value at `a`.
NO_NESTED: list[object] = [None, 1, [], {}, {"a": {}}]
#: An argument that makes those of a call large ones, which are read otherwise; and none.
FILLINGS: list[dict[str, object]] = [{}, {"filling": "x" * LARGE_BYTES}]


def passes(kind: str, argument: object, header: object, more: Mapping[str, object]) -> bool:
    """Whether a call with this argument and this header does."""
    arguments = {**more} if argument is ABSENT else {**more, "a": argument}
    asked = request(name="t", arguments=arguments)
    refused: HeaderMismatch | None = None
    try:
        check_params(asked, ONE[kind], Fields({"mcp-param-a": header}))
    except HeaderMismatch as error:
        refused = error
    if refused is not None:
        assert refused.ident == 5
        assert json.loads(refused.body())["error"]["code"] == -32020
    return refused is None


@pytest.mark.parametrize("more", FILLINGS)
@pytest.mark.parametrize(
    ("kind", "argument", "header"),
    [
        ("string", "us-west1", "us-west1"),
        ("string", "us-west1", " us-west1\t"),
        ("string", "Hello", base64_of("Hello")),
        ("string", "SGVsbG8=", "SGVsbG8="),
        ("string", "=?base64?SGVsbG8=", "=?base64?SGVsbG8="),
        ("string", "Hello, \u4e16\u754c", base64_of("Hello, \u4e16\u754c")),
        ("string", " padded ", base64_of(" padded ")),
        ("string", "line1\nline2", base64_of("line1\nline2")),
        ("string", "", ""),
        ("string", "", base64_of("")),
        ("string", None, ABSENT),
        ("string", ABSENT, ABSENT),
        ("string", ["a"], ABSENT),
        ("string", {"a": 1}, ABSENT),
        ("string", 7, "7"),
        ("integer", 42, "42"),
        ("integer", 42, "42.0"),
        ("integer", 42, base64_of("42")),
        ("integer", 42.0, "42"),
        ("integer", -7, "-7"),
        ("integer", 0, "-0"),
        ("integer", 2**60 + 1, str(2**60 + 1)),
        ("integer", 1e16, "10000000000000000"),
        ("integer", 1.5, "1.5"),
        ("boolean", True, "true"),
        ("boolean", False, "false"),
    ],
)
def test_a_header_that_matches_its_argument(
    kind: str, argument: object, header: object, more: dict[str, object]
) -> None:
    assert passes(kind, argument, header, more)


@pytest.mark.parametrize("more", FILLINGS)
@pytest.mark.parametrize(
    ("kind", "argument", "header"),
    [
        ("string", "us-west1", ABSENT),
        ("string", "us-west1", "us-east1"),
        ("string", "us-west1", "US-WEST1"),
        ("string", "us-west1", ["us-west1", "us-west1"]),
        ("string", "us-west1", ["us-west1", "us-east1"]),
        ("string", "Hello", "=?base64?SGVsbG8?="),
        ("string", "Hello", "=?base64?SGVs!!!bG8=?="),
        ("string", "Hello", base64_of("hello")),
        ("string", "caf\u00e9", "caf\xc3\xa9"),
        ("string", "caf\u00e9", "caf\xe9"),
        ("string", "a\x00", "a\x00"),
        ("string", "\ud800", base64_of(b"\xed\xa0\x80")),
        ("string", " padded ", " padded "),
        ("string", "", ABSENT),
        ("string", None, "null"),
        ("string", None, ""),
        ("string", ABSENT, "us-west1"),
        ("string", ["a"], "a"),
        ("string", 42, "42.0"),
        ("integer", 42, ABSENT),
        ("integer", 42, "43"),
        ("integer", 42, "42.5"),
        ("integer", 42, "4.2e1"),
        ("integer", 42, "+42"),
        ("integer", 42, "0x2a"),
        ("integer", 42, "4_2"),
        ("integer", 42, "\u0664\u0662"),
        ("integer", 42, "9" * 5000),
        ("integer", 2**60 + 1, str(2**60)),
        ("integer", 1, "true"),
        ("integer", True, "1"),
        ("integer", "42", "42.0"),
        ("boolean", 42, "42.0"),
        ("boolean", True, "True"),
        ("boolean", True, "1"),
        ("boolean", True, "false"),
        ("boolean", True, ABSENT),
    ],
)
def test_a_header_that_does_not_match_its_argument(
    kind: str, argument: object, header: object, more: dict[str, object]
) -> None:
    """streamable-http, "Server Behavior for Custom Headers": 400 and -32020."""
    assert not passes(kind, argument, header, more)


@pytest.mark.parametrize(
    "arguments",
    [
        *(None, 7, "a", [], {}, {"b": 1}, {"b": {}}, {"b": {"a": None}}),
        *("x" * LARGE_BYTES, ["x" * LARGE_BYTES]),
        *({**FILLINGS[1], "b": each} for each in NO_NESTED),
    ],
)
def test_arguments_that_lack_the_path(arguments: object) -> None:
    nested = (Annotation(("b", "a"), "Mcp-Param-A", "string"),)
    for asked in (request(name="t", arguments=arguments), request(name="t")):
        check_params(asked, nested, Fields({}))
        with pytest.raises(HeaderMismatch, match=r"arguments\.b\.a"):
            check_params(asked, nested, Fields({"Mcp-Param-A": "x"}))


@pytest.mark.parametrize("more", FILLINGS)
def test_an_argument_within_another(more: dict[str, object]) -> None:
    nested = (Annotation(("b", "a"), "Mcp-Param-A", "string"),)
    asked = request(name="t", arguments={**more, "a": "no", "b": {"a": "x", **more}})
    check_params(asked, nested, Fields({"Mcp-Param-A": "x"}))
    with pytest.raises(HeaderMismatch):
        check_params(asked, nested, Fields({"Mcp-Param-A": "no"}))


@pytest.mark.parametrize("more", FILLINGS)
def test_several_arguments_at_several_depths(more: dict[str, object]) -> None:
    several = tuple(
        Annotation(path, "Mcp-Param-" + "-".join(path), "string")
        for path in (("a",), ("b", "c"), ("b", "d", "e"), ("b", "d"), ())
    )
    inner = {"c": "2", "d": {"e": "3"}}
    fields = {"Mcp-Param-a": "1", "Mcp-Param-b-c": "2", "Mcp-Param-b-d-e": "3"}
    asked = request(name="t", arguments={**more, "a": "1", "b": inner})
    check_params(asked, several, Fields(fields))
    for name in fields:
        with pytest.raises(HeaderMismatch, match=name):
            check_params(asked, several, Fields({**fields, name: "4"}))


def test_headers_without_an_annotation_are_ignored() -> None:
    asked = request(name="t", arguments={"b": "x"})
    check_params(asked, ONE["string"], Fields({"Mcp-Param-B": ["y", "\x00"]}))
    check_params(asked, (), Fields({"Mcp-Param-A": "y"}))


def with_a_number_out_of_range(**arguments: object) -> ModernRequest:
    """A call with 1e999 in place of `"HERE"`."""
    line = encode(request(name="t", arguments=arguments).outer).replace(b'"HERE"', b"1e999")
    envelope = peek(line)
    assert envelope is not None
    return read_request(with_envelope(line, envelope), version_header=VERSION)


def test_of_large_arguments_only_what_headers_repeat_is_decoded() -> None:
    asked = with_a_number_out_of_range(**FILLINGS[1], a="x", b=["HERE"])
    check_params(asked, ONE["string"], Fields({"Mcp-Param-A": "x"}))


def test_arguments_that_cannot_be_compared() -> None:
    asked = with_a_number_out_of_range(a="HERE")
    check_params(asked, (), Fields({}))
    with pytest.raises(HeaderMismatch) as caught:
        check_params(asked, ONE["integer"], Fields({}))
    assert caught.value.ident == 5


def test_an_error_is_ascii_whatever_a_schema_says() -> None:
    odd = (Annotation(("\ud800" + "x" * 1000,), "Mcp-Param-A", "string"),)
    with pytest.raises(HeaderMismatch) as caught:
        check_params(request(name="t"), odd, Fields({"Mcp-Param-A": "x"}))
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 200
    assert json.loads(caught.value.body())["error"]["message"] == str(caught.value)


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
def test_the_header_for_a_task_may_be_missing_but_not_wrong(method: str) -> None:
    """Clients of today leave it out; what the body says is enough to find a task."""
    asked = request(method, taskId="a.1")
    fields = {**CALL, "Mcp-Method": method, "Mcp-Name": "a.1"}
    check_headers(asked, Fields(fields))
    check_headers(asked, Fields({**fields, "Mcp-Name": ABSENT}))
    assert "params.taskId" in mismatch(asked, {**fields, "Mcp-Name": "a.2"})
    assert "Mcp-Name" in mismatch(asked, {**fields, "Mcp-Name": ["a.1", "a.1"]})


# Headers of the bridge's own requests.


def raw(arguments: object) -> msgspec.Raw:
    return msgspec.Raw(encode(arguments))


REGION = Annotation(("region",), "Mcp-Param-Region", "string")


@given(st.text())
def test_what_the_bridge_sends_matches_what_it_expects(text: str) -> None:
    arguments = {"region": text}
    [(name, sent)] = param_headers(raw(arguments), (REGION,))
    assert sent.isascii()
    check_params(request(arguments=arguments, name="t"), (REGION,), Fields({name: sent}))


def test_no_headers_of_what_cannot_be_read() -> None:
    assert param_headers(None, (REGION,)) == []
    assert param_headers(msgspec.Raw(b"[" * 5000), (REGION,)) == []
    assert param_headers(raw({"region": []}), (REGION,)) == []


def test_headers_of_large_arguments() -> None:
    large = {"rest": "x" * LARGE_BYTES, "region": "eu"}
    assert param_headers(raw(large), (REGION,)) == [("Mcp-Param-Region", "eu")]
