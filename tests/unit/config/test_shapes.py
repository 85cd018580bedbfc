"""All that is wrong with a value, where msgspec names the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from mcpbridge.config.shapes import shape_errors

Word = Annotated[str, Meta(pattern="^[a-z]+$", description="a word")]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    needed: int
    words: tuple[Word, ...] = ()


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner | None = None
    by_name: Mapping[Word, Inner] = {}
    either: Word | tuple[Word, ...] = ()
    flag: bool = False
    least: Annotated[int, Meta(ge=1)] = 1


@pytest.mark.parametrize(
    ("value", "errors"),
    [
        ({}, []),
        ({"inner": None, "either": "a", "by_name": {"a": {"needed": 1}}}, []),
        (1, ["x: expected an object, got a number"]),
        ([], ["x: expected an object, got a list"]),
        ({"a": 1, "b": 2, 3: 4}, ["x: … `a`", "x: … `b`", "x: … another key"]),
        ({"inner": 1}, ["x.inner: expected an object or null, got a number"]),
        (
            {"inner": {"words": ["A", 1, "b"], "more": 1}},
            [
                "x.inner.words[0]: expected a word, got a string of 1 characters",
                "x.inner.words[1]: expected a string, got a number",
                "x.inner: … `more`",
                "x.inner.needed: expected a value, got none",
            ],
        ),
        (
            {"by_name": {"A": {"needed": "hush"}, "b": {"needed": "hush"}}},
            [
                "x.by_name: expected a word, got a string of 1 characters",
                "x.by_name.b.needed: expected an integer, got a string of 4 characters",
            ],
        ),
        ({"either": "HUSH"}, ["x.either: expected a word, got a string of 4 characters"]),
        ({"either": ["a", "B"]}, ["x.either[1]: expected a word, got a string of 1 characters"]),
        ({"flag": "hush"}, ["x.flag: expected true or false, got a string of 4 characters"]),
        ({"least": 0}, ["x.least: expected an integer >= 1, got a number"]),
    ],
)
def test_all_errors(value: Any, errors: list[str]) -> None:
    found = [str(error) for error in shape_errors(Outer, value, "x")]
    shown = [
        line.replace("expected keys that are known, got the key", "…").replace(
            "expected keys that are known, got", "…"
        )
        for line in found
    ]
    assert shown == errors
    assert "hush" not in "".join(found).lower()
