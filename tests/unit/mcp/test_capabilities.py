"""What extensions bring that passes from one era to the other."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mcpbridge.jsonrpc.members import encode, members
from mcpbridge.mcp.capabilities import (
    is_implementation,
    is_of_extension,
    well_formed,
    with_extensions,
)
from mcpbridge.mcp.modern_request import TASKS
from mcpbridge.translation.handshake import read_answer


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({}, {}),
        ({"tools": {}, "x": 1}, {"tools": {}, "x": 1}),
        ({"extensions": {"a/b": {"c": 1}}, "x": 1}, {"extensions": {"a/b": {"c": 1}}, "x": 1}),
        ({"extensions": {"a/b": {}, TASKS: {}}}, {"extensions": {"a/b": {}}}),
        ({"extensions": {TASKS: {}}, "x": 1}, {"x": 1}),
        (
            {"extensions": {"a/b": {}, TASKS: {}, "z/y": {}}, "a": 1, "x": 1},
            {"extensions": {"a/b": {}, "z/y": {}}, "a": 1, "x": 1},
        ),
        ({"extensions": {"a/b": None, "c/d": 1}}, {}),
        ({"extensions": {}}, {}),
        ({"extensions": None}, {}),
    ],
)
def test_every_extension_passes_but_tasks(given: Any, passes: Any) -> None:
    assert json.loads(encode(with_extensions(members(json.dumps(given).encode()) or {}))) == passes


def test_a_known_capability_must_be_an_object_and_no_other_may_be_null() -> None:
    given = {
        "tools": {},
        "prompts": {"listChanged": True},
        "logging": True,
        "resources": None,
        "list": [1],
        "flag": True,
        "number": 5,
        "missing": None,
    }
    known = frozenset({"tools", "prompts", "logging", "resources"})
    kept = well_formed(members(json.dumps(given).encode()) or {}, known)
    assert list(kept) == ["tools", "prompts", "list", "flag", "number"]


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ({"name": "x", "version": "1"}, True),
        ({"name": "", "version": "", "title": 5}, True),
        ({"name": "x"}, False),
        ({"version": "1"}, False),
        ({"name": "x", "version": 1}, False),
        (["name", "version"], False),
        (None, False),
    ],
)
def test_an_implementation_has_a_name_and_a_version(given: Any, complete: bool) -> None:
    raw = None if given is None else msgspec.Raw(encode(given))
    assert is_implementation(raw) is complete


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ("notifications/x", True),
        ("ui/notifications/x", True),
        ("notifications/message", False),
        ("notifications/tasks", False),
        ("notifications/tasks/status", False),
        ("notifications/tasksx", True),
        ("", False),
        (5, False),
        (None, False),
    ],
)
def test_a_notification_that_the_specification_does_not_know(method: object, passes: bool) -> None:
    assert is_of_extension(method) is passes


def test_discovery_offers_what_the_server_offers_but_tasks() -> None:
    """The DiscoverResult of a server that was initialized."""
    offered = {
        "tools": {},
        "prompts": 5,
        "logging": None,
        "tasks": {},
        "extensions": {"a/b": {"c": 1}, TASKS: {}},
        "new": [1],
        "newer": None,
    }
    result = {"protocolVersion": "2025-11-25", "capabilities": offered}
    answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
    discovered = json.loads(read_answer(members(answer) or {}).discover_result())
    assert discovered["capabilities"] == {
        "tools": {},
        "extensions": {"a/b": {"c": 1}},
        "new": [1],
    }
