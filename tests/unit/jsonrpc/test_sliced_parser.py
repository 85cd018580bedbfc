"""Large JSON texts in slices: what is found, and what is refused, is what a plain parser says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpbridge.errors import NotJson, NotJsonRpc, TooComplex
from mcpbridge.jsonrpc import sliced_parser
from mcpbridge.jsonrpc.fragments import (
    _REDUCTIONS,
    MAX_DEPTH,
    Span,
    check_piece,
    closes,
    is_too_deep,
)
from mcpbridge.jsonrpc.sliced_parser import (
    MAX_MEMBERS,
    MAX_NAME_BYTES,
    MAX_NUMBER_BYTES,
    SLICE_BYTES,
    at_once,
    elements,
    outline,
)
from tests.examples import examples

#: Slices so small that everything is cut everywhere.
SIZES = st.sampled_from([8, 9, 11, 16, 30, 64])

TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet='"\\[]{},:/u0\ud800\udc00\U0001f600é\n', max_size=40),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=6) | TEXTS, inner, max_size=6)
    ),
    max_leaves=30,
)
DEEP = st.builds(
    lambda kinds, leaf: _nested(kinds, leaf), st.lists(st.booleans(), max_size=60), VALUES
)


def _nested(kinds: list[bool], leaf: object) -> object:
    for kind in kinds:
        leaf = [leaf, 1] if kind else {"a": 1, "b": leaf}
    return leaf


@st.composite
def written(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """JSON, spelled in one way or another."""
    text = json.dumps(
        draw(values),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 2])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")])),
    )
    return text.encode("utf-8", "surrogatepass")


def plain(text: bytes) -> object:
    """What a plain parser says; raises `ValueError`."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text.decode("utf-8"), parse_constant=refuse)


def found(text: bytes, size: int) -> list[dict[str, bytes]]:
    """The members, as they stand."""
    return [
        {name: text[begin:end] for name, (begin, end) in spans.items()}
        for spans in at_once(outline(text, ("params", "_meta"), size=size))
    ]


@given(written(st.dictionaries(TEXTS, VALUES | DEEP, max_size=5)), SIZES)
@settings(max_examples=examples(200))
def test_outline_finds_the_members_that_json_finds(text: bytes, size: int) -> None:
    try:
        expected = plain(text)
    except UnicodeDecodeError as error:
        with pytest.raises(NotJson, match=rf"not UTF-8 \(byte {error.start}\)"):
            found(text, size)
        return
    assert isinstance(expected, dict)
    (outer, *_) = found(text, size)
    # A name with a lone surrogate is found under another.
    if text.isascii() and b"\\ud" in text:
        assert len(outer) <= len(expected)
    else:
        assert {name: plain(raw) for name, raw in outer.items()} == expected
        assert all(raw == raw.strip() for raw in outer.values())


@given(
    written(
        st.fixed_dictionaries(
            {"a": VALUES, "params": st.fixed_dictionaries({"x": DEEP, "_meta": VALUES}) | VALUES}
        )
    ),
    SIZES,
)
def test_outline_finds_inner_members(text: bytes, size: int) -> None:
    try:
        expected: Any = plain(text)
    except UnicodeDecodeError:
        return
    levels = [expected]
    for name in ("params", "_meta"):
        if not isinstance(levels[-1].get(name), dict):
            break
        levels.append(levels[-1][name])
    inside = found(text, size)
    assert len(inside) == len(levels)
    for spans, level in zip(inside, levels, strict=True):
        if b"\\ud" not in text:
            assert {name: plain(raw) for name, raw in spans.items()} == level


@pytest.mark.parametrize("name", ["a", "param", "params ", "x"])
def test_outline_enters_no_other_member(name: str) -> None:
    text = json.dumps({name: {"_meta": {"b": 1}}, "params": {name: {"b": 1}}}).encode()
    assert [set(each) for each in found(text, 8)] == [{name, "params"}, {name}]


@given(written(st.lists(VALUES | DEEP, max_size=8)), SIZES)
@settings(max_examples=examples(150))
def test_elements_finds_the_elements_of_an_array(text: bytes, size: int) -> None:
    try:
        expected = plain(text)
    except UnicodeDecodeError:
        return
    spans = at_once(elements(text, 8, size=size))
    assert [plain(text[begin:end]) for begin, end in spans] == expected


@given(written(VALUES | DEEP), st.data(), SIZES)
@settings(max_examples=examples(400))
@example(b"[1,2,3,4,5,6,7,8,9,]", None, 8)
@example(b"[1,2,3,4,5,,6,7,8,9]", None, 8)
@example(b'[1,2,3,4,5,{"a":1,2},7]', None, 8)
@example(b"[1,2,3,4,5,[6},7,8,9]", None, 8)
@example(b"[1,2,3,4,5]]]]]]]]]]]]]", None, 8)
@example(b'["aaaaaaaaaaaaa\\qaaaaaaaaaaaaaaa"]', None, 8)
@example(b'["aaaaaaaaaaaaa\x01aaaaaaaaaaaaaaa"]', None, 8)
@example(b'["aaaaaa\\u12","aaaa\\u1234aaaaaaaa"]', None, 8)
@example(b'["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', None, 8)
@example(b'[\\"1,2,3,4,5,6,7,8,9]', None, 8)
@example(b'["\\ud800aaaaaaaaaaaaaaaaa\\udc00\\ud800"]', None, 8)
@example(b"[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]", None, 8)
@example(b"[1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1]", None, 8)
@example(b"[" + b" " * 50 + b"]", None, 8)
@example(b"10000000\\.0", None, 8)
@example(b"10000000\\", None, 8)
@example(b"10000000x", None, 8)
def test_invalid_json_is_refused(text: bytes, data: st.DataObject | None, size: int) -> None:
    if data is not None and text:
        # Bytes are changed, left out, or put in.
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, max(0, len(text) - 1)))
            new = data.draw(st.sampled_from([b"", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\"]))
            text = text[:at] + new + text[at + data.draw(st.integers(0, 1)) :]
    for whole in (b"[%b]" % text, b'{"params":%b}' % text):
        try:
            plain(whole)
            valid = True
        except ValueError:
            valid = False
        work = (
            elements(whole, 10_000, size=size) if whole[:1] == b"[" else outline(whole, size=size)
        )
        if valid:
            at_once(work)
        else:
            with pytest.raises(NotJson) as caught:
                at_once(work)
            assert str(caught.value).startswith("the body is not ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Input data was truncated"),
        (b" " * 50, "Input data was truncated"),
        (b'{"a":[1,2,3,4,5,6,7]        ]', "(byte 28)"),
        (b'{"a":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaa', "Input data was truncated"),
        (b'{"a":[1,2,3,4,5,6,7]]]]]]]]]]]]]]', "(byte 20)"),
        (b'{"a":[1,2,33333333333333333]]', "(byte 28)"),
        (b"[", "expected '{'"),
        (b'}"a":1}', "expected '{' (byte 0)"),
        (b'\xff"a":1}', "not UTF-8 (byte 0)"),
        (b'{"a":tru', "Input data was truncated"),
        (b'{"a":[1,2,3,4,5,6,7,8', "Input data was truncated"),
        (b'{"a"', "Input data was truncated"),
        (b'{"a', "Input data was truncated"),
        (b'{"a":', "Input data was truncated"),
        (b"{1:2}", "expected '\"' (byte 1)"),
        (b'{"a" 1}', "expected ':' (byte 5)"),
        (b'{"a"}', "expected ':' (byte 4)"),
        (b'{"a"=1}', "expected ':' (byte 4)"),
        (b'{"a":1~', "expected ',' or '}' (byte 6)"),
        (b'{"%b":' % (b"a" * 1000), "Input data was truncated"),
        (b'{"a":1 "b":2}', "expected ',' or '}' (byte 7)"),
        (b'{"a":1,}', "expected '\"' (byte 7)"),
        (b'{"a":1}}', "trailing characters (byte 7)"),
        (b'{"\x01":1}', "invalid character (byte 2)"),
        (b'{"a":tru}', "invalid character"),
        (b'{"a":[1,2,3,4,5,6,7,8,9,x,1,2,3,4]}', "invalid character (byte 24)"),
        (b'{"a":["aaaaaaaaaaaaaaaaaaaaaaaaaaaaa",x,1,2,3,4]}', "invalid character (byte 38)"),
        (b'{"a":"aaaaaaaaaaaaaaaaaaaaaaaaaaa\x01"}', "invalid character (byte 33)"),
        (b'{"a":"aaaaaaaaaaaaaaaaaaaaaaaaaaa\xff"}', "not UTF-8 (byte 33)"),
    ],
)
def test_an_error_names_the_byte(text: bytes, words: str) -> None:
    with pytest.raises(NotJson) as caught:
        at_once(outline(text, size=8))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Input data was truncated"),
        (b"{}", "expected '['"),
        (b"[1", "Input data was truncated"),
        (b"[1 2]", "expected ',' or ']' (byte 3)"),
        (b"[1}", "expected ',' or ']' (byte 2)"),
        (b"[1]]", "trailing characters (byte 3)"),
        (b"[]]", "trailing characters (byte 2)"),
    ],
)
def test_an_error_in_an_array_names_the_byte(text: bytes, words: str) -> None:
    with pytest.raises(NotJson) as caught:
        at_once(elements(text, 10, size=8))
    assert words in str(caught.value)


ELEMENTS = [b"1", b'"%b"' % (b"a" * 30), b"[1,2]", b'{"b":3}', rb'"\"\\"', b"22"] * 2


@pytest.mark.parametrize("at", range(len(ELEMENTS)))
@pytest.mark.parametrize("size", [8, 9, 11, 16, 30])
def test_an_error_names_the_byte_wherever_the_text_is_cut(at: int, size: int) -> None:
    found = [*ELEMENTS[:at], b"x", *ELEMENTS[at + 1 :]]
    text = b'{"a":[%b]}' % b",".join(found)
    with pytest.raises(NotJson, match=rf"invalid character \(byte {text.index(b'x')}\)"):
        at_once(outline(text, size=size))


@pytest.mark.parametrize("size", [8, 9, 11, 16, 30])
def test_an_error_names_the_byte_of_a_long_string(size: int) -> None:
    """Slices that are inside of it are checked by themselves."""
    for at in range(100):
        string = b'"%b\x01%b"' % (b"a" * at, b"a" * (100 - at))
        for text in (b'{"a":%b}' % string, b'{"a":[%b,1,2]}' % string):
            with pytest.raises(NotJson, match=rf"\(byte {text.index(1)}\)"):
                at_once(outline(text, size=size))


def test_an_empty_array_has_no_elements() -> None:
    assert at_once(elements(b" [ ] ", 10)) == []


def steps(work: Any) -> int:
    """How many slices were done before it was refused."""
    done = 0
    try:
        for _ in work:
            done += 1
    except NotJsonRpc:
        return done
    pytest.fail("it was not refused")


def test_too_many_members_are_refused_before_the_rest_is_read() -> None:
    pairs = b",".join(b'"%d":1' % each for each in range(MAX_MEMBERS))
    at_once(outline(b'{"params":{%b}}' % pairs[: pairs.rindex(b",")], ("params",)))
    for text in (b"{%b,%b}", b'{"params":{%b},%b}', b'{"params":{"_meta":{%b}},%b}'):
        work = outline(text % (pairs, b'"x":1,' * 1_000_000), ("params", "_meta"), utf8=False)
        with pytest.raises(TooComplex, match="MAX_MEMBERS"):
            at_once(work)


def test_a_refusal_has_the_id_if_that_came_first() -> None:
    many = b'"params":{%b}' % (b'"x":1,' * MAX_MEMBERS)
    longest = b"a" * (MAX_NAME_BYTES - len('""'))
    for text, ident in (
        (b'{"id":7,%b}' % many, 7),
        (b'{"id":"a",%b}' % many, "a"),
        (b'{"id":[],%b}' % many, None),
        (b'{"x":"%b","id":7,%b}' % (b"a" * MAX_NAME_BYTES, many), 7),
        (b'{"id":"%b",%b}' % (longest, many), longest.decode()),
        (b'{"id":"%b",%b}' % (longest + b"a", many), None),
        (b'{%b,"id":7}' % many, None),
    ):
        with pytest.raises(TooComplex) as caught:
            at_once(outline(text, ("params",)))
        assert caught.value.ident == ident


def test_too_many_elements_are_refused_before_the_rest_is_read() -> None:
    text = b"[" + b"{}," * 1_000_000 + b"{}]"
    work = elements(text, 1024)
    with pytest.raises(TooComplex, match="1024 elements"):
        at_once(work)
    assert len(at_once(elements(b"[" + b"{}," * 1023 + b"{}]", 1024))) == 1024


def test_an_element_that_is_not_an_object_is_refused_before_the_rest_is_read() -> None:
    assert steps(elements(b"[1," + b"x" * 1000, 9, messages=True, size=10**6)) == 1
    assert steps(elements(b"[{},[" + b"x" * 1000, 9, messages=True, size=10**6)) == 2
    assert steps(elements(b"[}" + b"x" * 1000, 9, messages=True, size=10**6)) == 1


#: Deeper than any Python lets a decoder in C go: 1,000 up to 3.11, 10,000 in 3.13.
BEYOND = 50_000


@pytest.mark.parametrize(("opens", "closes"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(opens: bytes, closes: bytes) -> None:
    def text(depth: int) -> bytes:
        return b'{"a":[%b%b1%b]}' % (b"1," * 60, opens * depth, closes * depth)

    at_once(outline(text(MAX_DEPTH - 10), size=64))
    for depth, size in ((MAX_DEPTH + 100, 64), (100_000, 64), (100_000, 10**6), (5000, 4096)):
        with pytest.raises(NotJson, match="MAX_DEPTH"):
            at_once(outline(text(depth), size=size))
    # Found out while a comma is looked for.
    with pytest.raises(NotJson, match="MAX_DEPTH"):
        at_once(outline(b'{"a":[1,%b%b' % (b" " * 4100, opens * BEYOND), size=4096))
    # Deep within one piece alone, at whose end it is not.
    pair = opens * BEYOND + b"1" + closes * BEYOND
    with pytest.raises(NotJson, match="nested too deeply"):
        at_once(outline(b'{"a":["%b",%b,1]}' % (b"x" * 600_000, pair), size=500_000))


def test_a_name_or_a_number_that_is_too_long_is_refused() -> None:
    with pytest.raises(TooComplex, match="MAX_NAME_BYTES"):
        at_once(outline(b'{"%b":1}' % (b"a" * MAX_NAME_BYTES)))
    with pytest.raises(TooComplex, match="MAX_NAME_BYTES"):
        at_once(outline(b'{"%b' % (b"a" * (MAX_NAME_BYTES - len('"')))))
    with pytest.raises(TooComplex, match="MAX_NUMBER_BYTES"):
        at_once(outline(b'{"a":1%b}' % (b"0" * 2 * MAX_NUMBER_BYTES)))
    at_once(outline(b'{"a":1%b}' % (b"0" * (MAX_NUMBER_BYTES - 1))))


def test_the_longest_name_and_number_may_stand_anywhere() -> None:
    """MAX_NAME_BYTES, with the quotes, and MAX_NUMBER_BYTES do not count what is before."""
    name, number = b"a" * (MAX_NAME_BYTES - len('""')), b"1" * (MAX_NUMBER_BYTES // 2)
    text = b'{"x":"%b","%b":%b}' % (b"x" * MAX_NUMBER_BYTES, name, number)
    (outer,) = at_once(outline(text))
    begin, end = outer[name.decode()]
    assert text[begin:end] == number
    with pytest.raises(NotJson, match="truncated"):
        at_once(outline(b'{"x":"%b","%b' % (b"x" * MAX_NUMBER_BYTES, name[:100])))


def test_a_name_may_have_a_lone_surrogate() -> None:
    (outer,) = at_once(outline(b'{"\\ud800":1,"b":2}'))
    assert outer["b"] == (16, 17)


@pytest.mark.parametrize(
    "unit",
    [
        b"1",
        b"{}",
        b'""',
        b'{"a":[1,{"b":"x[\\"y"}]}',
        b'"[\\\\"',
        b"[[[[[]],1]]]",
        b'"\\ud83d\\ude00"',
    ],
)
def test_a_megabyte_is_read_in_bounded_slices(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def check(text: memoryview, spans: list[Span], *around: bytes) -> int | None:
        checked.append(sum(end - begin for begin, end in spans))
        return check_piece(text, spans, *around)

    monkeypatch.setattr(sliced_parser, "check_piece", check)
    text = b'{"params":{"a":[%b]}}' % b",".join([unit] * (1_000_000 // (len(unit) + 1)))
    done = sum(1 for _ in outline(text, ("params",)))
    assert done >= len(text) // (64 * 1024)
    assert found(text, 64 * 1024)[1]["a"] == text[15:-2]
    assert max(checked) < 2 * SLICE_BYTES


def test_large_text_is_read_in_slices() -> None:
    """`SLICE_BYTES` at a time, so that others are served in between."""
    values = b'"x",' * (2 * SLICE_BYTES)
    assert len(list(elements(b"[" + values + b"1]", len(values)))) >= len(values) // SLICE_BYTES
    text = b'{"a":["b",' + values + b"1]}"
    assert len(list(outline(text))) >= len(values) // SLICE_BYTES
    assert len(list(outline(text, size=len(text)))) < len(values) // SLICE_BYTES


@pytest.mark.parametrize("depth", [_REDUCTIONS, _REDUCTIONS + 1, 4 * _REDUCTIONS])
def test_brackets_of_any_depth_close_themselves(depth: int) -> None:
    """The first `_REDUCTIONS` pairs are removed together, the others one by one."""
    pairs = b"[{" * depth + b"}]" * depth
    stack = bytearray(b"[")
    assert not closes(stack, pairs + b"{")
    assert stack == b"[{"
    assert closes(stack, pairs + b"}" + pairs + b"]")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_is_counted_outside_of_strings(opening: bytes) -> None:
    """`MAX_DEPTH`, whatever the parser of this Python takes."""
    closing = b"]" if opening == b"[" else b"}"
    inner = b'"' + b"[{" * MAX_DEPTH + b'\\"' + b'"'
    for depth, deep in ((MAX_DEPTH, False), (MAX_DEPTH + 1, True)):
        assert is_too_deep(opening * depth + inner + closing * depth) is deep
    assert not is_too_deep(b"[" + b"[],{}," * MAX_DEPTH + b"1]")
    assert not is_too_deep(opening * MAX_DEPTH)
