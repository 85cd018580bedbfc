"""JSON with comments and trailing commas: what it holds, where, and what is wrong with it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.config.jsonc import MAX_DEPTH, NotJsonc, parse_jsonc

TEXT = """// A comment, with "quotes".
{
  /* Over
     two lines. */
  "a": ["// no comment", "/* neither */", 1, -2.5e3,],
  "b": {
    "c": null, // the last one
  },
  "d": true, "e": false, "f": "\\u00e4\\"\\n",
}
/* the end */"""


def test_comments_and_trailing_commas() -> None:
    assert parse_jsonc(TEXT).content == {
        "a": ["// no comment", "/* neither */", 1, -2500.0],
        "b": {"c": None},
        "d": True,
        "e": False,
        "f": 'ä"\n',
    }


def test_lines() -> None:
    lines = parse_jsonc(TEXT).lines
    assert (lines[()], lines["a",], lines["a", 3], lines["b", "c"], lines["f",]) == (2, 5, 5, 7, 9)


@pytest.mark.parametrize("empty", ["{}", "[]", "[/**/]", "{//\n}"])
def test_empty_containers(empty: str) -> None:
    assert not parse_jsonc(empty).content


def test_all_duplicate_keys_are_reported() -> None:
    document = parse_jsonc('{"a": 1, "b": {"c": 1,\n"c": 2}, \n"a": 3}')
    assert document.repeated == [(("b", "c"), 2), (("a",), 3)]
    assert document.content == {"a": 3, "b": {"c": 2}}


@pytest.mark.parametrize(
    ("text", "problem", "line", "column"),
    [
        ("", "expected a value, got the end of the file", 1, 1),
        ("{", "expected `}`, got the end of the file", 1, 2),
        ("\n[", "expected `]`, got the end of the file", 2, 2),
        ("{} {}", "expected the end of the file, got '{'", 1, 4),
        ('{"a" 1}', "expected `:`, got '1'", 1, 6),
        ('{"a":}', "expected a value, got '}'", 1, 6),
        ('{\n "a": 1\n "b": 2}', "expected `,` or `}`, got '\"'", 3, 2),
        ("[1 2]", "expected `,` or `]`, got '2'", 1, 4),
        ("[1,,2]", "expected a value, got ','", 1, 4),
        ("[,]", "expected a value, got ','", 1, 2),
        ("{,}", "expected a name in double quotes, got ','", 1, 2),
        ("{a: 1}", "expected a name in double quotes, got 'a'", 1, 2),
        ('{"a": True}', "expected a value, got True (write true)", 1, 7),
        ('{"a": NaN}', "expected a value, got 'N'", 1, 7),
        ('{"a": hush}', "expected a value, got 'h'", 1, 7),
        ('{"a": 01}', "expected a value, got '0'", 1, 7),
        ('{"a": -}', "expected a value, got '-'", 1, 7),
        ('["x\n"]', "the string is not closed in its line", 1, 2),
        ('["x', "the string is not closed in its line", 1, 2),
        ('["a\\x"]', "the string has an invalid escape after `\\`", 1, 4),
        ('[1, "a" /* b', "the comment is not closed", 1, 9),
        ("[1/2]", "expected `,` or `]`, got '/'", 1, 3),
        ("9" * 5000, "the number has too many digits", 1, 1),
        ("[" * 100_000, f"nested too deeply, more than {MAX_DEPTH} levels", 1, MAX_DEPTH + 1),
    ],
)
def test_errors(text: str, problem: str, line: int, column: int) -> None:
    """Named with its place in the user's own file, and with no word of it that may be secret."""
    with pytest.raises(NotJsonc) as caught:
        parse_jsonc(text)
    assert (str(caught.value), caught.value.line, caught.value.column) == (problem, line, column)


def test_the_deepest_nesting() -> None:
    assert parse_jsonc("[" * MAX_DEPTH + "]" * MAX_DEPTH).content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, st.sampled_from([None, 1]), st.booleans())
def test_plain_json_is_read_like_json(
    content: object, indent: int | None, ascii_only: bool
) -> None:
    content = json.loads(json.dumps(content).replace("Infinity", "1e999"))
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only).replace("Infinity", "1e999")
    assert parse_jsonc(text).content == json.loads(text)
