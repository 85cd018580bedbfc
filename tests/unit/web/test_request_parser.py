"""
Requests are parsed alike however their bytes are split, and never understood in another way than
by twisted.web's own parser.
"""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, Request

from mcpbridge.config.tuning import SLICE_BYTES
from mcpbridge.errors import (
    HeadTooLarge,
    MalformedRequest,
    MessageTooLarge,
    MethodNotAllowed,
    NotSupported,
)
from mcpbridge.web.request_parser import (
    KNOWN_NAMES,
    LENGTH_DIGITS,
    MAX_HEAD_BYTES,
    MAX_HEAD_FIELDS,
    MAX_LENGTH_DIGITS,
    NO_HEAD,
    SERVED_METHODS,
    VARYING,
    Head,
    ReceivedRequest,
    RequestParser,
)
from tests.examples import examples
from tests.unit.web.test_fast_path import streams

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
UPGRADE = b"Upgrade: a\r\nConnection: Upgrade"
CHUNKED = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def parsed(*pieces: bytes) -> list[ReceivedRequest]:
    """Return the requests in these pieces of data."""
    parser = RequestParser()
    for piece in pieces:
        parser.feed(piece)
    return list(parser.ready)


def only(*pieces: bytes) -> ReceivedRequest:
    """Return the one request in these pieces of data."""
    [request] = parsed(*pieces)
    return request


def said(head: Head) -> dict[str, Any]:
    """Return all that is to be known of a head, except its cache key and what was read of it."""
    return {
        name: each for name, each in vars(head).items() if name not in ("cache_key", "_mcp_values")
    }


def seen(requests: list[ReceivedRequest]) -> list[Any]:
    """Return all that is to be known of requests."""
    return [
        (said(each.head), each.content_length, each.body, each.arrived, str(each.refusal))
        for each in requests
    ]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Split data at these positions."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def test_request_without_a_body() -> None:
    request = only(GET)
    assert said(request.head) == said(Head(b"GET", b"/x", [(b"host", b"h")]))
    assert (request.content_length, request.body, request.refusal) == (None, b"", None)


@pytest.mark.parametrize("cut", [0, 1, 30, len(POST) - 4])
def test_request_with_a_body(cut: int) -> None:
    """What has arrived of it is known before it is complete."""
    parser = RequestParser()
    parser.feed(POST[:cut])
    assert parser.has_begun == (cut > 0)
    assert (parser.receiving is not None) == (cut == len(POST) - 4)
    assert parser.receiving is None or parser.receiving.arrived == 1
    parser.feed(POST[cut:])
    assert not parser.has_begun
    [request] = parser.ready
    assert (request.content_length, request.body, request.arrived) == (b"5", b"hello", 5)


def test_body_in_chunks() -> None:
    """Trailers and extensions of chunks are dropped, and do not become fields of any head."""
    body = b"3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nHost: evil\r\nX: y\r\n\r\n"
    first, second = parsed(CHUNKED + body + GET)
    assert (first.body, first.content_length, first.head.chunked) == (b"hello", None, True)
    assert first.head.values(b"host") == second.head.values(b"host") == [b"h"]
    again, _ = parsed(CHUNKED + body + CHUNKED + body)
    assert again.head.fields == first.head.fields


@pytest.mark.parametrize(
    "other",
    [
        POST.replace(b"POST", b"PUT"),
        POST.replace(b"1.1", b"1.0"),
        POST.replace(b"Host: h", b"Host: g"),
        POST.replace(b"Host", b"hOST"),
        POST.replace(b"Host: h\r\n", b""),
    ],
)
def test_another_head_is_not_taken_for_the_last_one(other: bytes) -> None:
    first, second = parsed(POST, other)
    assert first.head is not second.head


@pytest.mark.parametrize(
    ("fields", "version", "persistent"),
    [
        (b"", b"1.1", True),
        (b"Connection: close\r\n", b"1.1", False),
        (b"Connection: keep-alive, Close\r\n", b"1.1", False),
        (b"", b"1.0", False),
        (b"Connection: keep-alive\r\n", b"1.0", False),
    ],
)
def test_nothing_is_parsed_after_the_last_request(
    fields: bytes, version: bytes, persistent: bool
) -> None:
    """RFC 9112, section 9.3."""
    head = GET.replace(b"1.1", version).replace(b"\r\n\r\n", b"\r\n%b\r\n" % fields)
    parser = RequestParser()
    parser.feed(head)
    assert parser.closed is not persistent
    assert parser.ready[0].head.persistent is persistent
    parser.feed(GET)
    assert len(parser.ready) == 1 + persistent
    assert not parser.has_begun
    requests = parsed(head + GET)
    assert len(requests) == 1 + persistent
    assert all(each.refusal is None for each in requests)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /x\r\n\r\n",
        GET.replace(b"1.1", b"2.0"),
        GET.replace(b"1.1", b"0.9"),
        GET.replace(b"1.1", b"1.2"),
        GET.replace(b"Host", b"Ho st"),
        GET.replace(b"Host:", b"Host :"),
        GET.replace(b": h", b": a\r\n b"),
        GET.replace(b": h", b": a\0b"),
        GET.replace(b": h", b": a\rb"),
        GET.replace(b": h", b": a\nb"),
        GET.replace(b"\r\n", b"\n"),
        POST.replace(b"h: 5", b"h: +5"),
        POST.replace(b"h: 5", b"h: 5, 5"),
        POST.replace(b"h: 5", b"h: 99999999999999999999"),
        POST.replace(b"Host: h", b"Content-Length: 5"),
        POST.replace(b"Host: h", b"Transfer-Encoding: chunked"),
        CHUNKED + b"x\r\n",
        CHUNKED + b"1\n",
        CHUNKED + b"ffffffffffffffffffff\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_malformed_request_is_the_last(data: bytes) -> None:
    """It is refused, and whatever follows is dropped; those before it are served."""
    first, second = parsed(GET + data + GET, GET)
    assert first.refusal is None
    assert isinstance(second.refusal, MalformedRequest | MethodNotAllowed)
    assert second.refusal.status in (400, 405)
    assert second.body == b""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (GET.replace(b"GET /x", b"CONNECT h:1"), "CONNECT"),
        (CHUNKED.replace(b"chunked", b"gzip, chunked"), "Transfer-Encoding"),
        (CHUNKED.replace(b"1.1", b"1.0"), "Transfer-Encoding"),
    ],
)
def test_request_for_what_is_not_supported_is_refused(data: bytes, says: str) -> None:
    """RFC 9110, section 15.6.2: 501, and not 400."""
    refusal = only(data).refusal
    assert isinstance(refusal, NotSupported)
    assert says in str(refusal)


@pytest.mark.parametrize("method", [b"BREW", b"get", b"GETX"])
def test_unknown_method_is_refused_as_one_that_is_not_allowed(method: bytes) -> None:
    """Case matters (RFC 9110, section 9.1)."""
    refusal = only(GET.replace(b"GET", method)).refusal
    assert isinstance(refusal, MethodNotAllowed)
    assert (b"Allow", SERVED_METHODS.encode()) in refusal.headers()


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (POST.replace(b"Host: h", b"Connection: close, Upgrade\r\nUpgrade: h2c"), False),
        (POST.replace(b"1.1", b"1.0").replace(b"Host", b"Connection: Upgrade\r\nUpgrade"), False),
        (CHUNKED.replace(b"Host: h", b"Connection: Upgrade\r\nUpgrade: a") + b"ZZ\r\n", True),
        (
            CHUNKED.replace(b"1.1", b"1.0").replace(
                b"Host: h", b"Upgrade: a\r\nConnection: Upgrade"
            ),
            True,
        ),
        (
            GET.replace(b"1.1", b"2.0").replace(b"Host: h", b"Upgrade: a\r\nConnection: Upgrade"),
            True,
        ),
    ],
)
def test_upgrade_does_not_hide_what_is_wrong_with_a_request(data: bytes, refused: bool) -> None:
    """Nor that it is the last."""
    [_, last] = parsed(GET + data + GET)
    assert (last.refusal is not None) is refused
    assert refused or not last.head.persistent
    assert refused or last.head.version == (b"HTTP/1.0" if b"1.0" in data else b"HTTP/1.1")


def test_refusal_is_its_own_also_while_another_error_is_handled() -> None:
    """Requests are parsed when the one before is answered, perhaps with an error."""
    parser = RequestParser()
    try:
        raise MessageTooLarge("of another request")
    except MessageTooLarge:
        parser.feed(CHUNKED.replace(b"chunked", b"identity"))
    assert isinstance(parser.ready[0].refusal, NotSupported)


def test_malformed_request_has_no_head_that_anybody_could_act_on() -> None:
    """Its session would be ended by a DELETE, and only then the error be answered."""
    request = only(CHUNKED.replace(b"POST", b"DELETE") + b"ZZ\r\n")
    assert request.head is NO_HEAD
    assert isinstance(request.refusal, MalformedRequest)


def test_empty_lines_count_as_the_beginning_of_a_request() -> None:
    """Which has a deadline."""
    parser = RequestParser()
    begun = []
    for piece in (GET, b"\r\n", GET):
        parser.feed(piece)
        begun.append(parser.has_begun)
    assert begun == [False, True, False]


def test_empty_lines_count_no_longer_than_until_the_next_request() -> None:
    """Also one whose head is known: its connection has no deadline, and may have more."""
    parser = RequestParser()
    for _ in range(2 + MAX_HEAD_BYTES // len(b"\r\n")):
        parser.feed(b"\r\n")
        parser.feed(POST)
        assert not parser.has_begun
        [request] = parser.ready
        assert request.refusal is None
        parser.ready.clear()


def test_more_than_max_length_digits_are_refused() -> None:
    """Zeros may stand before a length; thousands of them could not be read as a number."""
    for count in (MAX_LENGTH_DIGITS, MAX_LENGTH_DIGITS + 1):
        request = only(POST.replace(b"h: 5", b"h: " + b"5".zfill(count)))
        assert isinstance(request.refusal, MalformedRequest) is (count > MAX_LENGTH_DIGITS)


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("body", [b"Content-Length: 5\r\n\r\nhello", b"\r\n"])
def test_upgrade_to_another_protocol_is_ignored(pieces: int, body: bytes) -> None:
    """As Java's HTTP client asks for it with its first request (RFC 9110, section 7.8)."""
    head = b"POST /x HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    data = head + b"HTTP2-Settings: AA\r\n" + body + GET
    size = -(-len(data) // pieces)
    first, second = parsed(*(data[at : at + size] for at in range(0, len(data), size)))
    assert first.refusal is None
    assert first.body == (b"hello" if b"hello" in body else b"")
    assert first.head.persistent
    assert [name for name, _ in first.head.fields] == [b"connection", b"http2-settings"]
    assert second.head.method == b"GET"


def test_head_beyond_max_head_bytes_is_refused() -> None:
    """However it is split, and also if it never ends."""
    room = MAX_HEAD_BYTES - len(b"/x") - len(b"host: h\r\n") - len(b"x-a: \r\n")
    for size, refused in ((room, False), (room + 1, True)):
        data = GET.replace(b"\r\n\r\n", b"\r\nX-A: %b\r\n\r\n" % (b"a" * size))
        assert isinstance(only(data).refusal, HeadTooLarge) is refused
    endless = b"GET /" + b"x" * MAX_HEAD_BYTES
    assert isinstance(only(*split(endless, list(range(0, 99, 9))), b"x" * 9).refusal, HeadTooLarge)
    assert parsed(endless[:MAX_HEAD_BYTES]) == []


@pytest.mark.parametrize("at", [b"Content-Length", b"X"])
def test_known_head_that_grows_beyond_max_head_bytes_is_refused(at: bytes) -> None:
    """Wherever the value is that has grown: here before the length, or behind it."""
    known = POST.replace(b"\r\n\r\n", b"\r\nX: %b\r\n\r\n" % (b"x" * (MAX_HEAD_BYTES - 100)))
    known = known.replace(b"\r\n%b:" % at, b"\r\nMcp-Name: a\r\n%b:" % at)
    grown = known.replace(b"Name: a", b"Name: " + b"a" * (MAX_HEAD_BYTES // 4))
    first, second = parsed(known, grown)
    assert first.refusal is None
    assert isinstance(second.refusal, HeadTooLarge)


def test_trailers_and_extensions_beyond_max_head_bytes_are_refused() -> None:
    """They would not show in what has arrived of the body."""
    for endless in (b"1;", b"1\r\nx\r\n0\r\nX: "):
        parser = RequestParser()
        parser.feed(CHUNKED + endless)
        for _ in range(MAX_HEAD_BYTES // 1024 - 1):
            parser.feed(b"a" * 1024)
        assert not parser.ready
        for _ in range(2):
            parser.feed(b"a" * 1024)
        [request] = parser.ready
        assert isinstance(request.refusal, HeadTooLarge)


def test_more_than_max_head_fields_are_refused() -> None:
    for count in (MAX_HEAD_FIELDS, MAX_HEAD_FIELDS + 1):
        data = b"GET /x HTTP/1.1\r\n" + b"X: y\r\n" * count + b"\r\n"
        assert isinstance(only(data).refusal, HeadTooLarge) is (count > MAX_HEAD_FIELDS)


def test_slice_is_slice_bytes_or_the_rest_of_a_body() -> None:
    """So that one read of thousands of requests does not hold up others."""
    parser = RequestParser()
    assert parser.slice_size == SLICE_BYTES
    parser.feed(POST.replace(b"h: 5", b"h: 100000"))
    assert parser.slice_size == 100_000 - 5
    parser.feed(b"x" * (100_000 - 6))
    assert parser.slice_size == SLICE_BYTES
    parser.feed(b"x" + CHUNKED + b"5\r\nhello")
    assert parser.slice_size == SLICE_BYTES


def test_refused_request_is_the_last_and_has_no_body() -> None:
    """Its head stays, as the response depends on that."""
    parser = RequestParser()
    parser.feed(POST[:-1])
    parser.refuse(MessageTooLarge("too large"))
    parser.feed(b"o" + GET)
    [request] = parser.ready
    assert (request.head.target, request.body, str(request.refusal)) == (b"/x", b"", "too large")
    assert not parser.has_begun


def test_closed_parser_has_nothing_left() -> None:
    parser = RequestParser()
    parser.feed(GET + POST[:-1])
    parser.close()
    parser.feed(b"o" + GET)
    assert not parser.ready
    assert parser.receiving is None
    assert not parser.has_begun


def test_unexpected_error_is_raised() -> None:
    """A defect is not answered as if the client had made it."""

    class Defective(RequestParser):
        def on_url(self, url: bytes) -> None:
            raise ZeroDivisionError

    with pytest.raises(Exception, match="callback error"):
        Defective().feed(GET)


@settings(max_examples=examples(400), deadline=None)
@given(streams(), st.lists(st.integers(0, 10_000), max_size=6))
@example(CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n" + GET, [60, 61, 70, 80])
def test_requests_are_the_same_however_their_bytes_are_split(data: bytes, cuts: list[int]) -> None:
    assert seen(parsed(data)) == seen(parsed(*split(data, cuts)))


KNOWN = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
TRACED = KNOWN.replace(b"X: y", b"Mcp-Name: a\r\nX: y\r\ntraceparent: 00-1").replace(
    b"Host: h", b"tracestate:\tz=1 \r\nHost: h"
)


@st.composite
def nearly_known(draw: st.DrawFn) -> bytes:
    """Generate a request with nearly the head of `KNOWN`."""
    length = draw(
        st.sampled_from([b"5", b"3", b"05", b"0", b"+5", b"5 ", b"", b"5, 5", b"5\r\nX: y"])
    )
    data = bytearray(KNOWN.replace(b"h: 5", b"h: " + length))
    for _ in range(draw(st.integers(0, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(st.sampled_from([b"", b"", KNOWN, b"x", b"\r\n"]))


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(nearly_known() | st.just(KNOWN), min_size=1, max_size=4))
@example([KNOWN.replace(b"h: 5", b"h: 500").replace(b"hello", b"x" * 500), KNOWN])
@example([KNOWN.replace(b"h: 5", b"h: " + b"0" * 20 + b"5")])
def test_request_with_a_known_head_is_understood_like_any_other(pieces: list[bytes]) -> None:
    """Whether its bytes are compared with those of the last head, or parsed."""
    assert seen(parsed(KNOWN, *pieces)) == seen(parsed(KNOWN + b"".join(pieces)))


@st.composite
def nearly_traced(draw: st.DrawFn) -> bytes:
    """Generate a request with nearly the head of `TRACED`."""
    text = TRACED
    values = [b"a", b"b", b"", b" b\t", b"a b", b"a\x00", b"\xff", b"1\r\nX: y", b"y" * 9000]
    for line in (b"Mcp-Name: a", b"traceparent: 00-1", b"tracestate:\tz=1", b"h: 5"):
        if draw(st.booleans()):
            value = draw(st.sampled_from([*values, b"5", b"3"]))
            text = text.replace(line, line.partition(b":")[0] + b": " + value)
    data = bytearray(text)
    for _ in range(draw(st.integers(0, 1))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(st.sampled_from([b"", b"", TRACED, KNOWN, b"x", b"\r\n"]))


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(nearly_traced() | st.just(TRACED) | st.just(KNOWN), min_size=1, max_size=4))
@example([TRACED.replace(b"00-1", b"00-2"), TRACED.replace(b": a", b": abc")])
@example([TRACED.replace(b"00-1", b"y" * 16_000)])
def test_request_with_other_varying_values_is_understood_like_any_other(
    pieces: list[bytes],
) -> None:
    assert seen(parsed(TRACED, *pieces)) == seen(parsed(TRACED + b"".join(pieces)))


@pytest.mark.parametrize("name", [b"baggage", b"Mcp-Name", b"TraceParent", b"tracestate"])
def test_heads_that_differ_in_varying_values_share_a_cache_key(name: bytes) -> None:
    """They are not parsed again, and each has its own values."""
    assert name.lower() in VARYING
    data = KNOWN.replace(b"X: y", b"%b: a=1\r\nX: y" % name)
    parser = Counting()
    parser.feed(data)
    parser.feed(data.replace(b"a=1", b"b=22") + data)
    heads = [each.head for each in parser.ready]
    assert parser.parses == 1
    assert [each.values(name.lower()) for each in heads] == [[b"a=1"], [b"b=22"], [b"a=1"]]
    assert heads[0] is heads[2]
    assert heads[0].cache_key is heads[1].cache_key
    assert [each.values(b"x") for each in heads] == [[b"y"]] * 3


@pytest.mark.parametrize(
    "other",
    [
        TRACED.replace(b"00-1", b"00 1"),
        TRACED.replace(b"00-1", b""),
        TRACED.replace(b"00-1", b"0" * (MAX_HEAD_BYTES // 2)),
        TRACED.replace(b"X: y", b"X: z"),
        TRACED.replace(b"Host: h", b"Host: g"),
    ],
)
def test_any_other_head_is_parsed_and_has_its_own_cache_key(other: bytes) -> None:
    """Also one with a value that is unusual, or with more than half of `MAX_HEAD_BYTES`."""
    parser = Counting()
    parser.feed(TRACED)
    parser.feed(other)
    assert parser.parses == 2
    first, second = parser.ready
    assert second.refusal is None
    assert first.head.cache_key is not second.head.cache_key


def test_values_of_a_repeated_field_stay_in_order() -> None:
    data = KNOWN.replace(b"X: y", b"baggage: a\r\nX: y\r\nbaggage: a")
    parser = Counting()
    parser.feed(data)
    parser.feed(data.replace(b"y\r\nbaggage: a", b"y\r\nbaggage: b"))
    assert parser.parses == 1
    assert parser.ready[-1].head.fields == [
        *((b"host", b"h"), (b"baggage", b"a")),
        *((b"x", b"y"), (b"baggage", b"b")),
    ]


def test_values_of_mcp_fields_are_found_in_any_case() -> None:
    [request] = parsed(TRACED.replace(b"X: y", b"MCP-Param-A: \xe4\r\nmcp-param-a: b"))
    assert request.head.mcp_values("Mcp-Name") == ["a"]
    assert request.head.mcp_values("mcp-PARAM-a") == ["\xe4", "b"]
    assert request.head.mcp_values("Mcp-Method") == []


class Counting(RequestParser):
    """A parser that counts what it has llhttp parse."""

    parses = 0

    def _parse(self, data: bytes) -> None:
        self.parses += 1
        super()._parse(data)


@pytest.mark.parametrize("cuts", [[], [20], [len(KNOWN) - 5], [len(KNOWN) - 5, len(KNOWN) - 2]])
def test_request_with_a_known_head_is_not_parsed_again(cuts: list[int]) -> None:
    """Its length does not matter: real bodies differ in that.  Its head must come in one piece."""
    parser = Counting()
    parser.feed(KNOWN)
    parser.feed(KNOWN.replace(b"h: 5", b"h: 3").replace(b"hello", b"abc") + KNOWN)
    for piece in split(KNOWN, cuts):
        parser.feed(piece)
    assert parser.parses == (3 if 20 in cuts else 1)
    requests = list(parser.ready)
    assert [each.content_length for each in requests] == [b"5", b"3", b"5", b"5"]
    assert [each.body for each in requests] == [b"hello", b"abc", b"hello", b"hello"]
    assert len({id(each.head) for each in requests[:3]}) == 1


def test_length_of_more_than_length_digits_is_parsed() -> None:
    """Zeros may stand before it, and a number may be too large for anybody."""
    for digits, parses in ((LENGTH_DIGITS, 1), (LENGTH_DIGITS + 1, 2)):
        parser = Counting()
        parser.feed(KNOWN)
        parser.feed(KNOWN.replace(b"h: 5", b"h: " + b"5".zfill(digits)))
        assert parser.parses == parses
        assert [each.body for each in parser.ready] == [b"hello", b"hello"]


def test_known_names_of_fields_are_shared() -> None:
    """So many spellings; more are read as well."""
    for number in range(2 * KNOWN_NAMES):
        only(b"GET /x HTTP/1.1\r\nX-%d: y\r\n\r\n" % number)
    first, second = (only(GET.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n")) for _ in range(2))
    assert first.head.fields[0][0] is second.head.fields[0][0]


class Reference(Request):
    """A request of twisted.web that notes what was received, and is complete at once."""

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def process(self) -> None:
        headers = {name.lower(): values for name, values in self.requestHeaders.getAllRawHeaders()}
        # `identity` is no transfer coding any more (RFC 9112, section 7).
        length = headers.pop(b"content-length", [])
        channel: Any = self.channel
        content: Any = self.content
        channel.noted.append(
            (self.method, self.uri, self.clientproto, headers, length, content.read())
        )
        self.setHeader(b"Content-Length", b"0")
        self.finish()


@settings(max_examples=examples(400), deadline=None)
@given(streams())
@example(GET + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + GET)
def test_no_request_is_understood_in_another_way_than_by_twisted_web(data: bytes) -> None:
    """
    What both accept has the same meaning: no byte of a body is taken for a request.  This parser is
    the stricter one, except that it skips any line ends before a request, and twisted.web one.
    """
    channel: Any = HTTPChannel()
    channel.requestFactory = partial(Reference, parsePOSTFormSubmission=False)
    channel.noted = []
    channel.makeConnection(StringTransport())
    channel.dataReceived(data)
    channel.setTimeout(None)
    accepted = [each for each in parsed(data) if each.refusal is None]
    for ours, theirs in zip(accepted, channel.noted, strict=False):
        fields: dict[bytes, list[bytes]] = {}
        for name, value in ours.head.fields:
            fields.setdefault(name, []).append(value)
        length = [] if ours.content_length is None else [ours.content_length]
        head = ours.head
        assert (head.method, head.target, head.version, fields, length, ours.body) == theirs
