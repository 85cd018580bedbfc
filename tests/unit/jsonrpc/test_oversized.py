"""What the two ends of a message say that was too large to be kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.envelope import Envelope, peek
from mcpbridge.jsonrpc.oversized import COMMAS, LAST_MEMBERS, Oversized, peek_at_server
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES


def of(text: str | bytes, end: int) -> Oversized:
    line = text.encode() if isinstance(text, str) else text
    return Oversized(line[:end], line[-end:], len(line))


BIG = "x" * 500


@pytest.mark.parametrize(
    ("text", "ident"),
    [
        ('{"jsonrpc":"2.0","id":7,"result":{"x":"%s"}}', 7),
        ('{"result":{"x":"%s"},"jsonrpc":"2.0","id":7}', 7),
        ('{"result":{"x":"%s"}, "id" : "a b" , "jsonrpc":"2.0" } ', "a b"),
        ('{"result":{"x":"%s","id":5},"jsonrpc":"2.0"}', msgspec.UNSET),
        ('{"result":{"x":"%s","id":5}}', msgspec.UNSET),
        ('{"result":{"id":5,"x":"%s"}}', msgspec.UNSET),
        ('{"result":[{"id":5}],"x":"%s"}', msgspec.UNSET),
        ('{"x":",\\"id\\":5","y":"%s"}', msgspec.UNSET),
        ('{"y":"%s","x":",\\"id\\":5}"}', msgspec.UNSET),
        ('{"id":null,"result":"%s"}', msgspec.UNSET),
        ('{"id":true,"result":"%s"}', msgspec.UNSET),
        ('{"id":[1],"result":"%s"}', msgspec.UNSET),
        ('{"i\\u0064":3,"result":"%s"}', 3),
        ('{"jsonrpc":"2.0","_meta":{"x":[{}]},"id":7,"result":{"x":"%s"}}', 7),
        ('["id",5,"%s"]', msgspec.UNSET),
        ('{"id":"%s","result":1}', msgspec.UNSET),
        ("%s", msgspec.UNSET),
        ('{"id":1x,"result":"%s"}', msgspec.UNSET),
    ],
)
def test_the_id_is_found_at_either_end(text: str, ident: object) -> None:
    """That of the outermost object, and never a guess."""
    assert of(text % BIG, 100).ident == ident


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ('{"method":"x","params":"%s"}', True),
        ('{"params":"%s","method":"x","id":1}', True),
        ('{"id":1,"result":{"method":"x","y":"%s"}}', False),
        ('{"method":{},"x":"%s"}', True),
        ('{"params":{"x":"%s"},"method":{"y":1}}', True),
        ('"method":"x","y":"%s"}', False),
        ('["x","method","y","%s"]', False),
    ],
)
def test_a_method_or_params_at_either_end(text: str, has: bool) -> None:
    assert of(text % BIG, 100).has_method is has
    assert of(text % BIG, 100).answered == (msgspec.UNSET if has else of(text % BIG, 100).ident)


NAMES = st.sampled_from(["id", "x", "result", "params", "method", '"id":1,'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just(',"id":9}'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, VALUES, max_size=6), st.integers(1, 60), st.booleans())
def test_members_that_are_shown_are_correct(
    message: dict[str, Any], end: int, ascii_: bool
) -> None:
    """Wherever it is cut."""
    line = json.dumps(message, ensure_ascii=ascii_, separators=(",", ":")).encode()
    told = of(line, end)
    if told.ident is not msgspec.UNSET:
        assert told.ident == message["id"]
    if told.has_method:
        assert {"method", "params"} & message.keys()


def of_tail(tail: str) -> Oversized:
    """A message whose beginning shows nothing."""
    return Oversized(b'{"result":[', tail.encode(), 10**9)


def test_last_members() -> None:
    """LAST_MEMBERS: of more scalars at the end only the last are looked at."""
    more = "".join(f',"x{number}":1' for number in range(LAST_MEMBERS - 1))
    assert of_tail(f'],"id":7{more}}}').ident == 7
    assert of_tail(f'],"id":7{more},"y":1}}').ident is msgspec.UNSET


def test_commas_in_strings() -> None:
    """COMMAS: so many may stand in the last member."""
    text = "a," * (COMMAS - 1)
    assert of_tail(f'],"id":"{text}"}}').ident == text
    assert of_tail(f'],"id":"{text},"}}').ident is msgspec.UNSET


@pytest.mark.parametrize("tail", [',"id":7}', '"x":1,"id":7}'])
def test_the_last_members_are_read_from_their_commas(tail: str) -> None:
    assert of_tail(tail).ident == 7


@pytest.mark.parametrize("tail", ['"id":7}', 'x,"id":7', ',"id":7]', ""])
def test_text_that_is_not_the_end_of_an_object(tail: str) -> None:
    assert of_tail(tail).ident is msgspec.UNSET


def test_many_quotes_and_commas() -> None:
    """Linear: to search anew from each of them would take hours."""
    head, tail = b'{"' + b'\\"' * 1_000_000, b',"":0' * 500_000 + b"x}"
    assert Oversized(head, tail, 10**9).members() == {}


# The envelope of a large message.

FILLER = "x" * LARGE_BYTES
MEMBERS = st.sampled_from(["jsonrpc", "id", "method", "result", "error", "params", "x", "i\u00e9"])
SCALARS = st.sampled_from(["2.0", 7, 1.5, None, True, "ping:1", "a,b", 'a","id":8', "", 10**30])
LARGE = st.one_of(
    st.just(FILLER),
    st.lists(st.just(FILLER), min_size=1, max_size=1),
    st.builds(lambda inner: {**inner, "text": FILLER}, st.dictionaries(NAMES, VALUES, max_size=2)),
)


@st.composite
def large_messages(draw: st.DrawFn) -> dict[str, Any]:
    """Members of a message in any order, one of them large, and perhaps a second object."""
    pairs: list[tuple[str, Any]] = draw(st.lists(st.tuples(MEMBERS, SCALARS), max_size=6))
    pairs.insert(draw(st.integers(0, len(pairs))), (draw(MEMBERS), draw(LARGE)))
    if draw(st.booleans()):
        pairs.insert(draw(st.integers(0, len(pairs))), (draw(MEMBERS), draw(VALUES)))
    message = dict(pairs)
    if draw(st.booleans()):
        message["jsonrpc"] = "2.0"
    return message


def shown(envelope: Envelope | None) -> object:
    if envelope is None:
        return None
    absent = (envelope.result is msgspec.UNSET, envelope.error is msgspec.UNSET)
    return envelope.method, envelope.id, type(envelope.id), absent


@given(
    large_messages(), st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r:")])
)
def test_envelope_of_a_large_message(
    message: dict[str, Any], ascii_: bool, separators: tuple[str, str]
) -> None:
    """It is that which the whole message has, unless a member beside the large one is hidden."""
    line = json.dumps(message, ensure_ascii=ascii_, separators=separators).encode()
    found, whole = peek_at_server(line), peek(line)
    if shown(found) == shown(whole):
        return
    # What is hidden stands between the large member and the scalars at the end.
    assert found is not None
    assert found.is_request or found.is_response
    assert any(
        isinstance(value, str | dict | list)
        and name in ("method", "result", "error", "id", "jsonrpc")
        for name, value in message.items()
    )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ('{"jsonrpc":"2.0","id":7,"result":{"a":%s}}', True),
        ('{"jsonrpc":"2.0","id":7,"error":{"a":%s}}', True),
        ('{"jsonrpc": "2.0", "id": 7, "result": [%s]}', True),
        ('{"jsonrpc":"2.0","id":7,"result":%s}', True),
        ('{"result":{"a":%s},"jsonrpc":"2.0","id":7}', True),
        ('{"result":{"a":%s},"jsonrpc":"2.0","id":7} ', True),
        ('{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":%s}}', True),
        ('{"method":"m","params":{"a":%s},"jsonrpc":"2.0","id":"7"}', True),
        # Without an id it may be a notification, or have its id where it is not seen.
        ('{"method":"m","params":{"a":%s},"jsonrpc":"2.0"}', False),
        ('{"jsonrpc":"1.0","id":7,"result":{"a":%s}}', False),
        ('{"jsonrpc":"2.0","id":7,"x":[%s],"result":{}}', False),
        ('{"jsonrpc":"2.0","result":[%s],"id":7,"x":{}}', False),
        ('{"jsonrpc":"2.0","result":[%s],"id":7' + ',"x":1' * (LAST_MEMBERS - 1) + "}", True),
        ('{"jsonrpc":"2.0","result":[%s],"id":7' + ',"x":1' * LAST_MEMBERS + "}", False),
        ('[{"jsonrpc":"2.0","id":7,"result":{"a":%s}}]', False),
        ('{"jsonrpc":"2.0","id":7,"result":{"a":%s]', False),
    ],
)
def test_what_is_large_is_not_parsed(text: str, parsed: bool) -> None:
    """Parsed it would be refused, as it is broken."""
    broken = (text % f'"{FILLER}"').replace("xx", "x\t", 1).encode()
    assert peek(broken) is None
    envelope = peek_at_server(broken)
    assert (envelope is not None) is parsed
    if envelope is not None:
        assert envelope.id == ("7" if 'id":"7' in text else 7)


def test_smaller_messages_are_parsed() -> None:
    """Up to `LARGE_BYTES`, which takes a few microseconds."""
    before, after = '{"jsonrpc":"2.0","id":7,"result":"\t', '"}'
    line = (before + "x" * (LARGE_BYTES - len(before + after)) + after).encode()
    assert peek_at_server(line) is None
    assert peek_at_server(line.replace(b"xx", b"xxx", 1)) is not None
