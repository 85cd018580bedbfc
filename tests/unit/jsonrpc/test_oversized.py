"""What the two ends of a message say that was too large to be kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.oversized import COMMAS, LAST_MEMBERS, Oversized


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
