"""What is told on a stream of `subscriptions/listen`, and in which words."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.errors import InvalidParams
from mcpbridge.mcp.modern_request import SERVER_INFO, SUBSCRIPTION_ID
from mcpbridge.mcp.subscriptions import (
    MAX_RESOURCES,
    Change,
    Filter,
    acknowledge,
    acknowledged_line,
    all_changes,
    change_line,
    complete_line,
    list_changes,
    promised_by,
    read_change,
    read_filter,
    told_lists,
)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


FLAGS = {"toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, Filter()),
        (FLAGS, Filter(True, True, True)),
        ({"toolsListChanged": False, "new": 5}, Filter()),
        ({"resourceSubscriptions": ["b", "a", "b"]}, Filter(resource_subscriptions=("b", "a"))),
    ],
)
def test_a_filter(asked: Any, found: Filter) -> None:
    assert read_filter(raw(asked)) == found


@pytest.mark.parametrize(
    "asked",
    [
        None,
        5,
        [],
        {"toolsListChanged": 1},
        {"resourceSubscriptions": "a"},
        {"resourceSubscriptions": [1]},
        {"resourceSubscriptions": ["\ud800"]},
        {"resourceSubscriptions": [str(n) for n in range(MAX_RESOURCES + 1)]},
    ],
)
def test_invalid_filters(asked: Any) -> None:
    with pytest.raises(InvalidParams):
        read_filter(raw(asked))


def test_a_filter_of_max_resources() -> None:
    wanted = read_filter(raw({"resourceSubscriptions": [str(n) for n in range(MAX_RESOURCES)]}))
    assert len(wanted.resource_subscriptions) == MAX_RESOURCES


def test_a_missing_filter() -> None:
    with pytest.raises(InvalidParams, match="missing"):
        read_filter(None)


ASKED = Filter(True, True, True, ("a",))


@pytest.mark.parametrize(
    ("capabilities", "promised"),
    [
        ({}, Filter()),
        ({"tools": {"listChanged": True}}, Filter(tools_list_changed=True)),
        ({"tools": {"listChanged": 1}, "prompts": 5}, Filter()),
        ({"tools": {"listChanged": {}}, "resources": {"subscribe": "true"}}, Filter()),
        ({"prompts": {"listChanged": True}}, Filter(prompts_list_changed=True)),
        ({"resources": {"listChanged": True}}, Filter(resources_list_changed=True)),
        ({"resources": {"subscribe": True}}, Filter(resource_subscriptions=("a",))),
    ],
)
def test_only_what_the_server_supports_is_promised(capabilities: Any, promised: Filter) -> None:
    """MCP, patterns/subscriptions, "Acknowledgment"."""
    known = {name: raw(each) for name, each in capabilities.items()}
    assert acknowledge(ASKED, known) == promised
    assert acknowledge(Filter(), known) == Filter()


@pytest.mark.parametrize(
    ("asked", "kind", "uri", "wanted"),
    [
        (Filter(tools_list_changed=True), "toolsListChanged", None, True),
        (Filter(tools_list_changed=True), "promptsListChanged", None, False),
        (Filter(prompts_list_changed=True), "promptsListChanged", None, True),
        (Filter(resources_list_changed=True), "resourcesListChanged", None, True),
        (Filter(True, True, True), "resourceSubscriptions", "a:b", False),
        (ASKED, "resourceSubscriptions", "a", True),
        (ASKED, "resourceSubscriptions", "a/b", True),
        (ASKED, "resourceSubscriptions", "ab", False),
        (Filter(resource_subscriptions=("f://d/",)), "resourceSubscriptions", "f://d/x", True),
        (Filter(resource_subscriptions=("f://d/x",)), "resourceSubscriptions", "f://d", False),
    ],
)
def test_only_changes_in_the_filter_pass(
    asked: Filter, kind: str, uri: str | None, wanted: bool
) -> None:
    assert asked.wants(Change(kind, uri, b"")) is wanted


@pytest.mark.parametrize(
    ("method", "params", "change"),
    [
        ("notifications/tools/list_changed", None, ("toolsListChanged", None)),
        ("notifications/prompts/list_changed", 5, ("promptsListChanged", None)),
        ("notifications/resources/list_changed", {}, ("resourcesListChanged", None)),
        ("notifications/resources/updated", {"uri": "a"}, ("resourceSubscriptions", "a")),
        ("notifications/resources/updated", {"uri": 5}, None),
        ("notifications/resources/updated", {}, None),
        ("notifications/resources/updated", 5, None),
        ("notifications/resources/updated", None, None),
        ("notifications/x", {"uri": "a"}, None),
    ],
)
def test_notifications_that_are_changes(method: str, params: Any, change: Any) -> None:
    found = read_change(method, None if params is None else raw(params), b"line")
    assert found == (change and (*change, b"line"))


@pytest.mark.parametrize("ident", [1, "a", 1.5, "1"])
def test_the_lines_of_a_stream(ident: Any) -> None:
    """MCP, patterns/subscriptions: each has the id of the listen."""
    assert json.loads(acknowledged_line(ident, ASKED)) == {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {
            "_meta": {SUBSCRIPTION_ID: ident},
            "notifications": {**FLAGS, "resourceSubscriptions": ["a"]},
        },
    }
    assert json.loads(acknowledged_line(ident, Filter()))["params"]["notifications"] == {}
    assert json.loads(complete_line(ident)) == {
        "jsonrpc": "2.0",
        "id": ident,
        "result": {"resultType": "complete", "_meta": {SUBSCRIPTION_ID: ident}},
    }
    meta = json.loads(complete_line(ident, raw({"name": "s"})))["result"]["_meta"]
    assert meta == {SUBSCRIPTION_ID: ident, SERVER_INFO: {"name": "s"}}


@pytest.mark.parametrize(
    ("params", "seen"),
    [
        (b"", {}),
        (b',"params":5', {}),
        (b',"params":{"uri":"a","_meta":5}', {"uri": "a"}),
        (b',"params":{"uri":"a","_meta":{"k":1}}', {"uri": "a", "_meta": {"k": 1}}),
    ],
)
def test_a_notification_on_a_stream(params: bytes, seen: Any) -> None:
    line = b'{"jsonrpc":"2.0","method":"m"%b}' % params
    seen = {**seen, "_meta": {**seen.get("_meta", {}), SUBSCRIPTION_ID: "s"}}
    told = json.loads(change_line("s", Change("toolsListChanged", None, line)))
    assert told == {"jsonrpc": "2.0", "method": "m", "params": seen}


@given(st.binary() | st.text().map(lambda text: json.dumps({"x": text}).encode()))
def test_any_filter_is_read_or_refused(given_raw: bytes) -> None:
    try:
        read_filter(msgspec.Raw(given_raw))
    except InvalidParams:
        pass


@pytest.mark.parametrize(
    "promised", [Filter(), Filter(True, True, True), Filter(resource_subscriptions=("a", "b"))]
)
def test_changes_of_everything_in_a_filter(promised: Filter) -> None:
    """Of each thing that was promised, and of nothing else, as a backend would tell it."""
    assert promised_by(acknowledged_line(1, promised)) == promised
    changes = list(all_changes(promised))
    assert all(map(promised.wants, changes))
    count = len(promised.resource_subscriptions) + sum(msgspec.structs.astuple(promised)[:3])
    assert len({(each.kind, each.uri) for each in changes}) == len(changes) == count
    for each in changes:
        message = json.loads(each.line)
        params = msgspec.Raw(json.dumps(message.get("params", {})).encode())
        assert read_change(message["method"], params, each.line) == each


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b'{"params":{}}', b'{"params":{"notifications":7}}', b'{"params":1}']
)
def test_an_acknowledgement_that_promises_nothing(line: bytes) -> None:
    assert promised_by(line) == Filter()


# Lists that the bridge itself changes.


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (None, []),
        ({}, []),
        ({"capabilities": 5}, []),
        ({"capabilities": {"tools": {"listChanged": True}, "resources": {}}}, ["tools"]),
        (
            {
                "capabilities": {
                    "prompts": {"listChanged": True},
                    "resources": {"listChanged": True},
                    "tools": {"listChanged": 1},
                    "logging": {"listChanged": True},
                }
            },
            ["prompts", "resources"],
        ),
    ],
)
def test_lists_of_whose_changes_a_server_tells(result: Any, told: list[str]) -> None:
    assert sorted(told_lists(raw(result))) == told


def test_changes_of_lists() -> None:
    changes = list(list_changes(["tools", "prompts", "resources"]))
    assert changes == list(all_changes(Filter(True, True, True)))
