"""Requests of 2026-07-28: which are, what they must have, and what is said of others."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.errors import (
    HeaderMismatch,
    InvalidParams,
    NotJsonRpc,
    Refused,
    TooComplex,
    UnsupportedVersion,
)
from mcpbridge.jsonrpc.envelope import SECOND_PARSE_BYTES, peek, peek_again
from mcpbridge.jsonrpc.members import members
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.mcp import modern_request
from mcpbridge.mcp.modern_request import (
    _UNREAD_BYTES,
    CLIENT_CAPABILITIES,
    CLIENT_INFO,
    CLIENTS_KEPT,
    INPUT_REQUIRED_METHODS,
    LISTEN,
    LOG_LEVEL,
    LOG_LEVELS,
    MAX_CAPABILITIES_BYTES,
    MAX_CLIENT_INFO_BYTES,
    MAX_LISTEN_BYTES,
    META_KEPT_BYTES,
    MODERN_PROTOCOL_VERSIONS,
    NAME_BEARING_METHODS,
    PROTOCOL_VERSION,
    REMOVED,
    TASK_METHODS,
    ModernRequest,
    claims_modern,
    is_modern_version,
    read_request,
    try_read_request,
)
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS

VERSION = MODERN_PROTOCOL_VERSIONS[-1]
META = {
    PROTOCOL_VERSION: VERSION,
    CLIENT_INFO: {"name": "c", "version": "1"},
    CLIENT_CAPABILITIES: {},
}
ABSENT = object()
NO_OBJECTS: list[object] = ["a", [], 7, True]
NO_STRINGS: list[object] = [None, 7, [VERSION], {}]
NO_TOKENS: list[object] = [True, [], {}, [1]]
NO_LEVELS: list[object] = ["Error", "", "all", 7, ["error"]]


def request(
    method: str = "tools/list", ident: object = 1, meta: object = META, **params: Any
) -> bytes:
    content = {**params} if meta is ABSENT else {**params, "_meta": meta}
    return json.dumps({"jsonrpc": "2.0", "id": ident, "method": method, "params": content}).encode()


def read(line: bytes, header: str | None = VERSION) -> ModernRequest:
    envelope = peek(line) or peek_again(line)
    assert envelope is not None
    return read_request(with_envelope(line, envelope), version_header=header)


def with_key(key: str, value: object) -> dict[str, object]:
    meta = {**META, key: value}
    return {name: each for name, each in meta.items() if each is not ABSENT}


def refusal(line: bytes, header: str | None = VERSION) -> Refused:
    with pytest.raises(Refused) as caught:
        read(line, header)
    # Fit to be written: no text of the client in it breaks the answer.
    assert json.loads(caught.value.body())["id"] == caught.value.ident
    return caught.value


# What is a request of it.


@pytest.mark.parametrize(
    ("header", "modern"),
    [
        ("2026-07-28", True),
        ("2025-11-26", True),
        ("2999-01-01", True),
        *((each, False) for each in HANDSHAKE_PROTOCOL_VERSIONS),
        ("1900-01-01", False),
        ("v999.0.0", False),
        ("2026-07-28 ", False),
        ("2026-07-28\n", False),
        ("9", False),
        ("draft", False),
        ("", False),
        (None, False),
        ("\u0662\u0660\u0662\u0666-07-28", False),
    ],
)
def test_which_versions_are_modern(header: str | None, modern: bool) -> None:
    assert is_modern_version(header) is modern


def test_every_modern_revision_is_later_than_any_legacy_one() -> None:
    assert all(is_modern_version(each) for each in MODERN_PROTOCOL_VERSIONS)
    assert sorted(MODERN_PROTOCOL_VERSIONS) == list(MODERN_PROTOCOL_VERSIONS)


@pytest.mark.parametrize(
    ("line", "claims"),
    [
        (request(), True),
        (request("initialize"), True),
        (request(meta=with_key(PROTOCOL_VERSION, None)), True),
        # as PHP writes it
        (request().replace(b"/protocolVersion", b"\\/protocolVersion"), True),
        (request(a="\ud800"), True),
        (request(meta=with_key("a", "\ud800")), True),
        (request("initialize", meta=ABSENT, protocolVersion="2025-11-25"), False),
        (request(meta={"protocolVersion": VERSION}), False),
        (request(meta=[PROTOCOL_VERSION]), False),
        (request(meta=PROTOCOL_VERSION), False),
        (request(meta={"a": META}), False),
        (request(meta=ABSENT, a={"_meta": META}), False),
        (b'{"params":["%b"]}' % PROTOCOL_VERSION.encode(), False),
        (b'{"a":"%b"}' % PROTOCOL_VERSION.encode(), False),
        (b'["%b"]' % PROTOCOL_VERSION.encode(), False),
        (b'{"%b"' % PROTOCOL_VERSION.encode(), False),
        (b"[" * 100_000 + b'"%b"' % PROTOCOL_VERSION.encode(), False),
        (request(meta=ABSENT), False),
        (b"", False),
    ],
)
def test_which_messages_claim_to_be_modern(line: bytes, claims: bool) -> None:
    assert claims_modern(line) is claims


@settings(deadline=None)
@given(st.binary())
def test_claims_modern_never_raises(text: bytes) -> None:
    claims_modern(text)
    assert claims_modern(b'{"params":{"_meta":{"protocolVersion":' + text) is False


# What is read.


def test_a_request_is_read() -> None:
    meta = {
        **META,
        LOG_LEVEL: "warning",
        "progressToken": "t",
        "traceparent": "00-1",
        CLIENT_CAPABILITIES: {"sampling": {}, "elicitation": {"url": {}, "form": {}}},
    }
    line = request("tools/call", "x", meta, name="add", arguments={"b": 1.0})
    found = read(line)
    assert found.outer == members(line)
    assert (found.id, found.method) == ("x", "tools/call")
    assert (found.version, found.log_level, found.progress_token) == (VERSION, "warning", "t")
    assert found.capabilities == b'{"elicitation":{"form":{},"url":{}},"sampling":{}}'
    assert found.name == "add"
    assert found.client_info is not None
    assert json.loads(bytes(found.client_info)) == META[CLIENT_INFO]
    assert found.arguments is not None
    assert bytes(found.arguments) == b'{"b": 1.0}'
    assert set(found.params) == {"name", "arguments", "_meta"}
    assert bytes(found.meta["traceparent"]) == b'"00-1"'


def test_a_minimal_request() -> None:
    found = read(request(meta={PROTOCOL_VERSION: VERSION, CLIENT_CAPABILITIES: {}}))
    assert found.capabilities == b"{}"
    assert (found.client_info, found.log_level, found.progress_token) == (None, None, None)
    assert found.name is None
    assert found.arguments is None


@pytest.mark.parametrize("key", [CLIENT_INFO, LOG_LEVEL, "progressToken"])
def test_null_counts_as_missing(key: str) -> None:
    found = read(request(meta=with_key(key, None)))
    assert (found.log_level, found.progress_token) == (None, None)
    assert (found.client_info is None) is (key == CLIENT_INFO)
    assert bytes(found.meta[key]) == b"null"


def test_white_space_around_the_version_is_ignored() -> None:
    """RFC 9110, section 5.5."""
    assert read(request(), f" \t{VERSION} ").version == VERSION


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_every_log_level(level: str) -> None:
    assert read(request(meta=with_key(LOG_LEVEL, level))).log_level == level


@pytest.mark.parametrize("token", ["t", "", 0, -1, 10**30, 1.5])
def test_every_type_of_progress_token(token: object) -> None:
    found = read(request(meta=with_key("progressToken", token))).progress_token
    assert found == token
    assert type(found) is type(token)


@pytest.mark.parametrize(("method", "parameter"), NAME_BEARING_METHODS.items())
def test_methods_that_name_something(method: str, parameter: str) -> None:
    assert read(request(method, **{parameter: "caf\u00e9"})).name == "caf\u00e9"
    assert read(request(method, **{parameter: "\ud800"})).name == "\ud800"
    for wrong in ({}, {parameter: 7}, {parameter: None}, {"other": "x"}):
        error = refusal(request(method, 3, **wrong))
        assert (type(error), error.ident) == (InvalidParams, 3)


def test_methods_are_of_one_list_or_the_other() -> None:
    assert set(NAME_BEARING_METHODS) == INPUT_REQUIRED_METHODS | TASK_METHODS
    assert not (INPUT_REQUIRED_METHODS | TASK_METHODS) & REMOVED


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":{},"b":{"c":[1,2],"d":{}}}', '{ "b": {"d":{ },"c":[1, 2]},"a":{} }'),
        ('{"a":"caf\\u00e9"}', '{"a":"caf\u00e9"}'),
        ('{"a":"\\ud800"}', '{"\\u0061":"\\uD800"}'),
        ('{"a":1,"a":2}', '{"a":2}'),
    ],
)
def test_two_spellings_of_the_same_capabilities_are_equal(one: str, other: str) -> None:
    before = request(meta=with_key(CLIENT_CAPABILITIES, "HERE"))
    texts = [read(before.replace(b'"HERE"', each.encode())).capabilities for each in (one, other)]
    assert texts[0] == texts[1]
    assert texts[0].isascii()
    assert json.loads(texts[0]) == json.loads(one)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.dictionaries(st.text(), st.none())),
    st.randoms(),
)
def test_capabilities_have_no_order(capabilities: dict[str, Any], random: Any) -> None:
    pairs = list(capabilities.items())
    random.shuffle(pairs)
    one = read(request(meta=with_key(CLIENT_CAPABILITIES, capabilities))).capabilities
    assert read(request(meta=with_key(CLIENT_CAPABILITIES, dict(pairs)))).capabilities == one
    assert json.loads(one) == capabilities


def test_a_lone_surrogate_elsewhere_stays() -> None:
    line = request("tools/call", name="n", arguments={"a": "\ud800"})
    found = read(line)
    assert found.arguments is not None
    assert bytes(found.arguments) == b'{"a": "\\ud800"}'


# What is refused.


@pytest.mark.parametrize(
    "line",
    [
        request(meta=ABSENT),
        request(meta=None),
        request(meta=[META]),
        request(meta="\ud800"),
        request(meta={}),
        b'{"jsonrpc":"2.0","id":1,"method":"m"}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":null}',
        *(request(meta=with_key(PROTOCOL_VERSION, each)) for each in (ABSENT, *NO_STRINGS)),
        *(
            request(meta=with_key(CLIENT_CAPABILITIES, each))
            for each in (ABSENT, None, *NO_OBJECTS)
        ),
        *(request(meta=with_key(CLIENT_INFO, each)) for each in NO_OBJECTS),
        *(request(meta=with_key(LOG_LEVEL, each)) for each in NO_LEVELS),
        *(request(meta=with_key("progressToken", each)) for each in NO_TOKENS),
        request(meta=with_key("progressToken", 7)).replace(b": 7", b": 1e999"),
        request(meta=with_key(LOG_LEVEL, "\ud800")),
    ],
)
def test_params_that_are_not_valid(line: bytes) -> None:
    """2026-07-28, basic/index: a request without the fields it must have gets -32602 and 400."""
    error = refusal(line)
    assert (type(error), error.status, error.code, error.ident) == (InvalidParams, 400, -32602, 1)


@pytest.mark.parametrize(
    "capabilities",
    [
        '{"a":"%s"}' % ("x" * MAX_CAPABILITIES_BYTES),
        '{"a":1e999}',
        '{"a":%s}' % ("9" * 5000),
    ],
)
def test_capabilities_that_are_too_large_or_cannot_be_read(capabilities: str) -> None:
    before = request(meta=with_key(CLIENT_CAPABILITIES, "HERE"))
    error = refusal(before.replace(b'"HERE"', capabilities.encode()))
    assert (type(error), error.ident) == (InvalidParams, 1)


def test_capabilities_as_large_as_may_be() -> None:
    capabilities = {"a": "x" * (MAX_CAPABILITIES_BYTES - len('{"a":""}'))}
    found = read(request(meta=with_key(CLIENT_CAPABILITIES, capabilities)))
    assert len(found.capabilities) == MAX_CAPABILITIES_BYTES


@pytest.mark.parametrize("header", [None, "", "2025-11-25", "2026-07-29", "2026-07-28,2026-07-28"])
def test_a_header_with_another_version(header: str | None) -> None:
    """streamable-http, "Protocol Version Header": 400 and -32020."""
    error = refusal(request(ident="x"), header)
    assert (type(error), error.status, error.code) == (HeaderMismatch, 400, -32020)
    assert error.ident == "x"


@pytest.mark.parametrize(
    "version", ["v999.0.0", "2999-01-01", "2025-11-25", "1900-01-01", "x" * 50]
)
def test_an_unsupported_version(version: str) -> None:
    """basic/versioning: -32022; what is supported is what `server/discover` names."""
    error = refusal(request(ident=9, meta=with_key(PROTOCOL_VERSION, version)), version)
    assert (type(error), error.status, error.code) == (UnsupportedVersion, 400, -32022)
    assert error.data == {"supported": [VERSION], "requested": version[:40]}
    assert error.ident == 9


def test_the_first_mistake_is_reported() -> None:
    """The rules of a revision that is not spoken are not known; a client at odds with itself is."""
    strange = {PROTOCOL_VERSION: "2999-01-01"}
    assert type(refusal(request(meta=strange), "2999-01-01")) is UnsupportedVersion
    assert type(refusal(request(meta=strange), VERSION)) is HeaderMismatch
    assert type(refusal(request(meta={}), None)) is InvalidParams
    assert type(refusal(request(meta=with_key(LOG_LEVEL, 7)), None)) is HeaderMismatch


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","method":"notifications/cancelled"}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        request(ident=None),
        *(request(ident=lone) for lone in ("\ud800", "\udabc", "\udfff")),
    ],
)
def test_messages_that_are_not_a_request(line: bytes) -> None:
    """basic/index, "Requests": the id is a string or an integer, not null."""
    error = refusal(line)
    assert (type(error), error.ident) == (NotJsonRpc, None)


META_VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [ABSENT, None, True, 1, 1.5, "a", "\ud800", [], {}, VERSION, "error"]
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [PROTOCOL_VERSION, CLIENT_INFO, CLIENT_CAPABILITIES, LOG_LEVEL, "progressToken"]
        ),
        META_VALUES,
    ),
    st.sampled_from(["tools/call", "resources/read", "x"]),
    st.sampled_from([1, "1", 1.5, 10**20]),
)
def test_whatever_stands_there_it_is_read_or_refused(meta: Any, method: str, ident: Any) -> None:
    meta = {key: each for key, each in {**META, **meta}.items() if each is not ABSENT}
    line = request(method, ident, meta, name="n", uri="u")
    refused: Refused | None = None
    try:
        found = read(line)
    except Refused as error:
        refused = error
    if refused is None:
        assert (found.id, found.version) == (ident, VERSION)
    else:
        assert refused.ident == ident
        assert json.loads(refused.body())["id"] == ident


def test_far_too_large_capabilities_are_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_UNREAD_BYTES`, white space included: reading them is what would take long."""
    before = request(meta=with_key(CLIENT_CAPABILITIES, "HERE"))
    longest = b"{" + b" " * (_UNREAD_BYTES - len('{"a":1}')) + b'"a":1}'
    assert read(before.replace(b'"HERE"', longest)).capabilities == b'{"a":1}'
    reading = modern_request._object

    def read_object(raw: Any, name: str) -> Any:
        assert name != CLIENT_CAPABILITIES
        return reading(raw, name)

    monkeypatch.setattr(modern_request, "_object", read_object)
    error = refusal(before.replace(b'"HERE"', longest.replace(b'"a"', b' "a"')))
    assert type(error) is InvalidParams
    assert "MAX_CAPABILITIES_BYTES" in str(error)


def test_a_long_body_that_is_no_json_is_not_parsed_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """It will be refused; what the fast parser takes is looked at whatever its length."""
    line = b'{"params":{"_meta":{"%b":"\\ud800"}}}' % PROTOCOL_VERSION.encode()
    long = b" " * SECOND_PARSE_BYTES
    assert claims_modern(line)
    assert claims_modern(line.replace(b"\\ud800", b"x") + long)
    # As long as `read_message` takes.
    assert claims_modern(line.ljust(SECOND_PARSE_BYTES))
    monkeypatch.setattr(modern_request, "members", lambda line: pytest.fail("it was parsed"))
    assert not claims_modern(line + long)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (request(meta=ABSENT), "params._meta is missing"),
        (request(meta=7), "params._meta must be an object"),
        (request(meta={}), f"{PROTOCOL_VERSION} is missing"),
        (request(meta=with_key(PROTOCOL_VERSION, 7)), f"{PROTOCOL_VERSION} must be a string"),
        (request("tools/call"), "params.name is missing"),
        (request("tools/call", name=7), "params.name must be a string"),
    ],
)
def test_a_refusal_says_whether_a_member_is_missing_or_of_another_type(
    line: bytes, words: str
) -> None:
    assert str(refusal(line)).startswith(words)


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (LISTEN, MAX_LISTEN_BYTES),
        ("completion/complete", MAX_LISTEN_BYTES + 1),
        ("x", MAX_LISTEN_BYTES + 1),
    ],
)
def test_max_listen_bytes_bounds_only_a_listen(method: str, size: int) -> None:
    filling = "x" * (size - len(request(method, x="")))
    assert read(request(method, x=filling)).method == method
    with pytest.raises(TooComplex, match="MAX_LISTEN_BYTES"):
        read(request(LISTEN, x="x" * MAX_LISTEN_BYTES))


def test_max_client_info_bytes() -> None:
    name = "x" * (MAX_CLIENT_INFO_BYTES - len('{"name": ""}'))
    found = read(request(meta=with_key(CLIENT_INFO, {"name": name})))
    assert found.client_info is not None
    assert len(found.client_info) == MAX_CLIENT_INFO_BYTES
    larger = request(meta=with_key(CLIENT_INFO, {"name": name + "x"}))
    assert type(refusal(larger)) is InvalidParams


@pytest.mark.parametrize("params", [None, {}, {"_meta": {}}])
def test_nothing_is_asked_for_in_a_revision_that_is_not_known(params: object) -> None:
    """It may have other rules: what it lacks is not said, but that it is not known."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "x", "params": params}
    line = json.dumps({name: each for name, each in message.items() if each is not None}).encode()
    with pytest.raises(UnsupportedVersion) as caught:
        read(line, "2999-01-01")
    assert caught.value.ident == 1
    with pytest.raises(InvalidParams):
        read(line)
    with pytest.raises(InvalidParams):
        read(line, None)


# What is remembered.


@pytest.fixture(autouse=True)
def _forget() -> None:
    modern_request._known_clients.clear()


def test_what_a_client_says_of_itself_is_read_once() -> None:
    """Beside that its `_meta` may say anything."""
    first = read(request("tools/call", 1, name="a"))
    again = read(request("tools/list", 2, meta={**META, "traceparent": "00-1", "progressToken": 3}))
    assert again.client_info is first.client_info
    assert again.capabilities is first.capabilities
    assert (again.id, again.method, again.name) == (2, "tools/list", None)
    assert (first.progress_token, again.progress_token) == (None, 3)
    assert "traceparent" in again.meta.keys() - first.meta.keys()


@pytest.mark.parametrize("key", [PROTOCOL_VERSION, CLIENT_INFO, CLIENT_CAPABILITIES, LOG_LEVEL])
def test_each_thing_that_a_client_says_tells_it_from_others(key: str) -> None:
    """Also when it says nothing instead."""
    read(request(meta=with_key(LOG_LEVEL, "info")))
    for value in (7, ABSENT):
        told = {**with_key(LOG_LEVEL, "info"), key: value}
        line = request(meta={name: each for name, each in told.items() if each is not ABSENT})
        found = outcome(line)
        modern_request._known_clients.clear()
        assert outcome(line) == found


def outcome(line: bytes) -> object:
    """Return what a request says, or what is wrong with it."""
    try:
        found = read(line)
    except Refused as error:
        return str(error)
    return (found.version, found.capabilities, found.log_level, found.client_info is None)


def usual(line: bytes) -> ModernRequest | None:
    """Return what is read quickly of a line, once its client is known."""
    read(request())
    return try_read_request(line)


def shown(found: ModernRequest) -> dict[str, object]:
    """Return all members of a request, in a form that can be compared."""
    plain = {name: getattr(found, name) for name in ModernRequest.__struct_fields__}
    return {
        name: {key: bytes(raw) for key, raw in each.items()} if isinstance(each, dict) else each
        for name, each in plain.items()
        if name != "client_info"
    }


TOKEN = {**META, "progressToken": "t", "x": [1]}


@pytest.mark.parametrize(
    "line",
    [
        request(),
        request("tools/call", "é", name="ä", arguments={}),
        request("subscriptions/listen", 1.5),
        request("resources/read", meta=TOKEN, uri="x"),
        request("server/discover", meta={**META, "progressToken": None}),
        request().replace(b'"id": 1', b'"id": 2, "id": 1'),
    ],
)
def test_usual_request_is_read_alike_and_quickly(line: bytes) -> None:
    found = usual(line)
    assert found is not None
    assert shown(found) == shown(read(line))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"[%b]" % request(),
        request()[:-1],
        request().replace(b'"2.0"', b'"1.0"'),
        request().replace(b'"jsonrpc"', b'"other"'),
        request().replace(b'"id": 1,', b""),
        request(ident=None),
        request(ident=[]),
        request(ident="\ud800"),
        request().replace(b'"tools/list"', b"7"),
        request(meta=ABSENT),
        request(meta=7),
        request(meta=with_key(CLIENT_CAPABILITIES, {"roots": {}})),
        request(meta=with_key(CLIENT_INFO, ABSENT)),
        request(meta=with_key(PROTOCOL_VERSION, "2999-01-01")),
        request(meta=with_key("progressToken", [])),
        request("tools/call"),
        request("tools/call", name=7),
        request(deep=[[]]).replace(b"[[]]", b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_unusual_request_is_not_read_quickly(line: bytes) -> None:
    """Nor is that of a client that is not known."""
    assert usual(line) is None
    modern_request._known_clients.clear()
    assert try_read_request(request()) is None


def test_a_mistake_is_told_each_time() -> None:
    wrong = request(meta=with_key(CLIENT_CAPABILITIES, 7))
    first, again = refusal(wrong), refusal(wrong)
    assert str(first) == str(again)
    assert str(refusal(wrong, "2025-11-25")) != str(first)


def test_header_is_compared_with_a_known_version_too() -> None:
    read(request())
    assert isinstance(refusal(request(), "2025-11-25"), HeaderMismatch)
    with pytest.raises(HeaderMismatch):
        read(request(), None)


def test_clients_kept_bounds_what_is_remembered() -> None:
    for number in range(2 * CLIENTS_KEPT):
        read(request(meta=with_key(CLIENT_CAPABILITIES, {"experimental": {str(number): {}}})))
    assert len(modern_request._known_clients) == CLIENTS_KEPT


def test_meta_kept_bytes_bounds_each_of_them() -> None:
    long: object = {"experimental": {"x" * META_KEPT_BYTES: {}}}
    for _ in range(2):
        found = read(request(meta=with_key(CLIENT_CAPABILITIES, long)))
        assert json.loads(found.capabilities) == long
    assert not modern_request._known_clients


@given(
    st.dictionaries(
        st.sampled_from([*META, LOG_LEVEL, "progressToken", "x"]),
        st.sampled_from([VERSION, {}, {"name": "c"}, {"a": None}, "info", "Info", None, 7, []]),
    ),
    st.sampled_from([VERSION, "2025-11-25", f" {VERSION}", None]),
)
def test_a_request_is_read_alike_the_first_time_and_later(
    meta: dict[str, Any], header: str | None
) -> None:
    line = request("tools/call", name="t", meta={**META, **meta})

    def outcome() -> object:
        try:
            found = read(line, header)
        except Refused as error:
            return type(error), str(error)
        fields = [getattr(found, name) for name in ModernRequest.__struct_fields__]
        return [bytes(each) if isinstance(each, msgspec.Raw) else str(each) for each in fields]

    def without_addresses(found: object) -> str:
        # The members of a dictionary are views at different addresses.
        return re.sub("0x[0-9a-f]+", "", str(found))

    modern_request._known_clients.clear()
    assert without_addresses(outcome()) == without_addresses(outcome())
