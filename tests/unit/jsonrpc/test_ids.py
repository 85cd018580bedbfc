"""The ids of requests, as servers give them back."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.ids import (
    is_answer_to,
    is_id,
    other_spelling,
    own_number,
    own_number_of,
    same_id,
    with_id,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [(0, "0"), (1, "1"), (-7, "-7"), (10**17, "1" + "0" * 17)],
)
def test_an_integer_and_its_text(one: int, other: str) -> None:
    assert other_spelling(one) == other
    assert other_spelling(other) == one
    assert is_answer_to(one, other)
    assert is_answer_to(other, one)


@pytest.mark.parametrize(
    "ident",
    [
        *("01", "+1", "-0", "1.0", "1e0", " 1", "1 ", "1\n", "", "-", "\u0661", "x", "9" * 19),
        *(1.0, 1.5, None, True, False, 10**18, msgspec.UNSET),
    ],
)
def test_ids_without_another_spelling(ident: Any) -> None:
    assert other_spelling(ident) is msgspec.UNSET


@pytest.mark.parametrize(
    ("ident", "asked"),
    [("1", 1.0), (1.0, "1"), ("1", 2), ("a", 1), (msgspec.UNSET, 1), ("1", msgspec.UNSET)],
)
def test_ids_that_answer_another_request(ident: Any, asked: Any) -> None:
    assert not is_answer_to(ident, asked)


@given(st.integers() | st.text() | st.floats(allow_nan=False) | st.none())
def test_every_id_answers_itself_in_both_spellings(ident: Any) -> None:
    assert is_answer_to(ident, ident)
    other = other_spelling(ident)
    if other is not msgspec.UNSET:
        assert type(other) is not type(ident)
        assert other_spelling(other) == ident


@pytest.mark.parametrize(
    ("said", "number"),
    [
        *((7, 7), (7.0, 7), ("7", 7), (0, 0), ("0", 0)),
        *((True, 0), (False, 0), (None, 0), ("07", 0), ("x", 0), (1.5, 0), (msgspec.UNSET, 0)),
    ],
)
def test_the_bridges_own_numbers(said: Any, number: int) -> None:
    assert own_number(said) == number


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        *((b"7", 7), (b"7.0", 7), (b'"7"', 7), (b'"\\u0037"', 7)),
        *((b'"07"', None), (b'"7.0"', None), (b"true", None), (b"null", None), (b"[7]", None)),
        *((b"0", None), (b"0.0", None), (b'"0"', None), (None, None)),
    ],
)
def test_the_bridges_own_numbers_in_undecoded_members(
    raw: bytes | None, number: int | None
) -> None:
    assert own_number_of(None if raw is None else msgspec.Raw(raw)) == number


@pytest.mark.parametrize("raw", [b"0", b"7", b"-1", b"2.5", b'"7"', b'""'])
def test_a_string_or_a_number_is_an_id(raw: bytes) -> None:
    assert is_id(msgspec.Raw(raw))


@pytest.mark.parametrize("raw", [None, b"null", b"true", b"false", b"[7]", b'{"a":"7"}'])
def test_no_other_value_is_an_id(raw: bytes | None) -> None:
    assert not is_id(None if raw is None else msgspec.Raw(raw))


def test_with_id_replaces_only_the_id() -> None:
    line = b'{"jsonrpc":"2.0", "id":"1","result":{"x":"\\ud800", "y":1.50}}'
    assert with_id(line, 1) == (b'{"jsonrpc":"2.0","id":1,"result":{"x":"\\ud800", "y":1.50}}')
    assert with_id(b"[1]", 1) == b"[1]"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"1", b"1", True),
        (b"1", b"2", False),
        (b"2", b"1", False),
        (b"1", b'"1"', False),
        (b'"a"', b'"\\u0061"', True),
        (b'"a"', b'"b"', False),
        (b"1", None, False),
    ],
)
def test_raw_ids_are_the_same_however_they_are_escaped(
    one: bytes, other: bytes | None, same: bool
) -> None:
    assert same_id(msgspec.Raw(one), None if other is None else msgspec.Raw(other)) is same
