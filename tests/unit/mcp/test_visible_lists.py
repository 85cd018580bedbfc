"""What a server lists, without what is not there for a client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, MAX_MEMBERS, WHOLE_BYTES
from mcpbridge.mcp.name_rules import KINDS, Kind
from mcpbridge.mcp.visible_lists import _BEGIN_BYTES, MAX_LIST_BYTES, MAX_LISTED, VisibleLists


def allows(kind: Kind, name: str) -> bool:
    return not name.startswith("x")


LISTED: list[tuple[str, list[str], bool]] = []


@pytest.fixture(autouse=True)
def nothing_listed() -> None:
    LISTED.clear()


def listed(member: str, names: list[str], more: bool) -> None:
    LISTED.append((member, names, more))


ALL = VisibleLists(allows, KINDS, (), listed)
PRIVATE = VisibleLists(allows, KINDS, ("resources",))
TOOLS = VisibleLists(allows, ("tools",), ("tools",))


def answer(result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"result":%b}' % result


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (b'{"tools":[{"name":"a"},{"name":"x"}]}', b'{"tools":[{"name":"a"}]}'),
        (b'{"tools":[{"name":"x"}],"nextCursor":"2"}', b'{"tools":[],"nextCursor":"2"}'),
        (
            b'{"n":1e2,"tools":[{"z":1234567890.10 , "name":"a"},{"name":"x"}],"m":"\\u00e9"}',
            b'{"n":1e2,"tools":[{"z":1234567890.10 , "name":"a"}],"m":"\\u00e9"}',
        ),
        (b'{"prompts":[{"name":"x"},{"name":"a"}]}', b'{"prompts":[{"name":"a"}]}'),
        (b'{"resources":[{"uri":"x:a","name":"a"}]}', b'{"resources":[]}'),
        (
            b'{"resourceTemplates":[{"uriTemplate":"x:{a}"},{"uriTemplate":"a:{a}"}]}',
            b'{"resourceTemplates":[{"uriTemplate":"a:{a}"}]}',
        ),
        # Names that clients might read in different ways.
        (b'{"tools":[{"name":"a","name":"b"}]}', b'{"tools":[]}'),
        (b'{"tools":[{"name":"a","NAME":"b"}]}', b'{"tools":[]}'),
        (b'{"tools":[{"NAME":"a"}]}', b'{"tools":[]}'),
        (b'{"tools":[{"name":"a","n\\u0061me":"b"}]}', b'{"tools":[]}'),
        (b'{"tools":[{"name":1},{},1,null,[1],"a",{"name":{"name":"a"}}]}', b'{"tools":[]}'),
        (b'{"tools":[{"name":"a"},[["name","a"]]]}', b'{"tools":[{"name":"a"}]}'),
        (b'{"tools":[{"name":"\\ud800"},{"name":"x\\ud800"}]}', b'{"tools":[{"name":"\\ud800"}]}'),
        (b'{"tools":[{"name":"a", "x":"\xff"}]}', b'{"tools":[]}'),
        (b'{"tools":[{"name":"a", "NAME":"a"},{"name" : "a"}]}', b'{"tools":[{"name" : "a"}]}'),
        (
            b'{"tools":[{"name":"a","s":{"name":1}},{"name":"x","s":{"name":1}}]}',
            b'{"tools":[{"name":"a","s":{"name":1}}]}',
        ),
        # Two lists in one result, of which the last counts.
        (b'{"tools":[{"name":"x"}],"prompts":[{"name":"x"}]}', b'{"tools":[],"prompts":[]}'),
        (b'{"tools":[{"name":"a"}],"tools":[{"name":"x"}]}', b'{"tools":[]}'),
        (b'{"\\u0074ools":[{"name":"x"}]}', b'{"tools":[]}'),
    ],
)
def test_lists(result: bytes, expected: bytes) -> None:
    assert ALL.filtered(answer(result)) == answer(expected)


@pytest.mark.parametrize(
    "line",
    [
        answer(b'{"tools" : [{"name":"a"}] }'),
        answer(b'{"tools":null}'),
        # Results of calls may have any members; these are no lists.
        answer(b'{"content":[],"resources":{"cpu":1}}'),
        answer(b'{"content":[],"tools":["a","b"]}'),
        answer(b'{"structuredContent":{},"tools":["a"]}'),
        answer(b'{"messages":[],"prompts":["a"]}'),
        answer(b'{"contents":[],"resources":["a"],"a":"\\ud800"}'),
        answer(b'{"protocolVersion":"2025-06-18","tools":["a"]}'),
        answer(b'{"content":[{"tools":[{"name":"x"}]}]}'),
        answer(b"[1]"),
        answer(b"null"),
        answer(b'{"a":"\\ud800"}'),
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"tools":[{"name":"x"}]}}',
        b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{"tools":[]}}',
        b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}',
        b'{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:"}}',
        b'{"jsonrpc":"2.0","method":"notifications/resources/updated"}',
        b'{"jsonrpc":"2.0","method":"a","x":"\\ud800"}',
        b'{"jsonrpc":"2.0","method":1}',
        b'[{"jsonrpc":"2.0","id":1,"result":{}}]',
        b"[]",
        b"no json",
        b"1",
    ],
)
def test_what_passes_byte_for_byte(line: bytes) -> None:
    assert ALL.filtered(line) is line


def test_updates_of_what_is_not_there_are_dropped() -> None:
    method = b"notifications/resources/updated"
    update = b'{"jsonrpc":"2.0","method":"%b","params":{"uri":"x:a"}}' % method
    assert ALL.filtered(update) is None
    assert ALL.filtered(update.replace(b'"params', b'"x":"\\ud800","params')) is None
    assert ALL.filtered(b"[%b]" % update) is None
    assert TOOLS.filtered(update) is None, "what is restricted is for `allows` to say"


def test_a_result_with_a_method() -> None:
    for more in (b"", b',"x":"\\ud800"'):
        line = answer(b'{"tools":[{"name":"x"}]}').replace(
            b'"id":1', b'"method":"a","id":1%b' % more
        )
        assert ALL.filtered(line) == line.replace(b'{"name":"x"}', b"")


SECRET = b'{"tools":[{"name":"x"}]}'


@pytest.mark.parametrize(
    "line",
    [
        answer(SECRET)[:-1] + b',"result":{}}',
        answer(SECRET)[:-1] + b',"result":{"tools":[]}}',
        answer(SECRET)[:-1] + b',"x":"\\ud800","result":{}}',
        answer(SECRET[:-1] + b',"tools":[]}'),
        answer(SECRET[:-1] + b',"tools":null}'),
        answer(SECRET[:-1] + b',"tools":[],"content":[]}'),
    ],
)
def test_members_that_are_there_twice(line: bytes) -> None:
    """Only the last one reaches the client, which may read another one."""
    found = ALL.filtered(line)
    assert found is not None
    assert b'"x"}' not in found
    assert json.loads(found) == json.loads(line)


def test_a_result_within_a_result() -> None:
    line = answer(b'{"content":[],"structuredContent":{"result":1}}')
    assert ALL.filtered(line) is line


def test_batches() -> None:
    one, other = answer(b'{"tools":[{"name":"x"}]}'), answer(b'{"a":1}')
    assert ALL.filtered(b"[%b,%b]" % (one, other)) == b"[%b,%b]" % (
        answer(b'{"tools":[]}'),
        other,
    )


def test_a_lone_surrogate_elsewhere() -> None:
    line = b'{"jsonrpc":"2.0","id":"\\ud800","result":{"tools":[{"name":"x"}]}}'
    assert ALL.filtered(line) == line.replace(b'{"name":"x"}', b"")


def test_kinds_that_are_not_restricted() -> None:
    line = answer(b'{"prompts":[{"name":"x"}]}')
    assert TOOLS.filtered(line) is line


def error_of(line: bytes | None) -> Any:
    assert line is not None
    found = json.loads(line)
    assert found["id"] == 1
    return found["error"]


def test_a_list_that_cannot_be_read() -> None:
    error = error_of(ALL.filtered(answer(b'{"tools":{"name":"a"}}')))
    assert error["code"] == -32603
    assert "tools that cannot be read" in error["message"]


NOT_A_NUMBER = [b"NaN", b"-Infinity"]


@pytest.mark.parametrize("more", NOT_A_NUMBER)
@pytest.mark.parametrize(
    "name", ["tools", "prompts", "resources", "resourceTemplates", "t\\u006fols"]
)
def test_a_list_that_is_no_json_does_not_pass(name: str, more: bytes) -> None:
    """Some clients read it all the same: Python writes and takes such numbers."""
    line = answer(b'{"%b":[{"name":"x","uri":"x:","a":%b}]}' % (name.encode(), more))
    found = ALL.filtered(line)
    assert "is in no JSON" in error_of(found)["message"]
    assert ALL.filtered(b"[%b]" % line) is None


def test_a_list_that_nobody_can_read_does_not_pass() -> None:
    assert ALL.filtered(answer(b'{"tools":[{"name":"x",}]}')) is None


@pytest.mark.parametrize("name", ["tools", "t\\u006fols"])
def test_a_list_that_is_nested_deeply_does_not_pass(name: str) -> None:
    """How deep a message may be to be read differs between versions of Python."""
    deep = b"[" * 5000 + b"]" * 5000
    line = answer(b'{"%b":[{"name":"x","a":%b}]}' % (name.encode(), deep))
    for each in (line, b"[%b]" % line):
        assert b'"x"' not in (ALL.filtered(each) or b"")


def test_other_messages_that_are_no_json() -> None:
    """Those pass that can have no list, for clients that read them."""
    for result in (b'{"content":[],"x":NaN}', b'{"a":NaN,"b":"caf\\u00e9 \\"tools\\""}'):
        line = answer(result)
        assert ALL.filtered(line) is line
    update = b'{"method":"notifications/resources%bupdated","params":{"uri":"x:a","b":NaN}}'
    for slash in (b"/", b"\\/", b"\\u002f"):
        assert ALL.filtered(update % slash) is None
    assert PRIVATE.filtered(answer(b'{"contents":[],"cacheScope":"public","a":NaN}')) != line


@pytest.mark.parametrize(
    ("ident", "expected"),
    [(b"1", 1), (b'"\\ud800"', "\ud800"), (b"%d" % (1 << 70), 1 << 70)],
)
def test_answers_to_lists_that_are_no_json(ident: bytes, expected: object) -> None:
    """What follows a message does not hide its id."""
    line = b'{"id":%b,"result":{"tools":[]}}' % ident
    for broken in (line + b" garbage}", b" " + line.replace(b"[]", b"[NaN]")):
        found = ALL.filtered(broken)
        assert found is not None
        assert json.loads(found)["id"] == expected


@pytest.mark.parametrize("outer", [b'"id":1,"method":"a"', b'"id":true', b'"id":NaN', b'"a":1'])
def test_no_answers_to_other_messages_that_are_no_json(outer: bytes) -> None:
    """A request of the server may have the id of another one of the client."""
    assert ALL.filtered(b'{%b,"result":{"tools":[NaN]}}' % outer) is None
    large = b'{"id":1,"result":{"tools":[NaN,"%b"]}}' % (b"x" * MAX_LIST_BYTES)
    assert ALL.filtered(large) is None


def test_a_result_with_too_many_members() -> None:
    """`MAX_MEMBERS`: of such a result none is read."""
    many = b"".join(b'"%d":0,' % each for each in range(MAX_MEMBERS + 1))
    result = b'{%b"x":"%b","tools":[{"name":"x"}]}' % (many, b"x" * LARGE_BYTES)
    for more in (b"", b',"y":"\\ud800"'):
        line = answer(result).replace(b'"id":1', b'"id":1%b' % more)
        assert "too many members" in error_of(ALL.filtered(line))["message"]
    line = answer(b"{}").replace(b'"id":1,"result":{}', result[1:-1] + b',"result":{"tools":[]}')
    assert ALL.filtered(line) is None


def test_the_number_of_elements_has_a_bound() -> None:
    most = answer(b'{"tools":[%b]}' % b",".join([b'{"name":"a"}'] * MAX_LISTED))
    assert ALL.filtered(most) is most
    more = answer(b'{"tools":[%b]}' % b",".join([b"0"] * (MAX_LISTED + 1)))
    assert "MAX_LISTED" in error_of(ALL.filtered(more))["message"]


def test_the_size_has_a_bound() -> None:
    begin = b'{"tools":[{"name":"a","description":"'
    most = answer(b'%b%b"}]}' % (begin, b"d" * (MAX_LIST_BYTES - len(answer(begin)) - 4)))
    assert len(most) == MAX_LIST_BYTES
    assert ALL.filtered(most) is most
    assert "MAX_LIST_BYTES" in error_of(ALL.filtered(most[:-1] + b" }"))["message"]


@pytest.mark.parametrize("member", [b"content", b"contents", b"messages", b"structuredContent"])
def test_a_large_result_is_not_read(member: bytes) -> None:
    """Whatever follows is none of a list's: this shows only that it was not looked at."""
    line = answer(b'{"%b":[],"x":"%b","tools":[{"name":"x"}]}' % (member, b"x" * WHOLE_BYTES))
    assert ALL.filtered(line) is line


def test_how_far_a_large_result_is_looked_at() -> None:
    content = b'{"content":[],"x":"%b"}' % (b"x" * MAX_LIST_BYTES)
    for space in (b" " * (_BEGIN_BYTES - 60), b" " * _BEGIN_BYTES):
        line = answer(content).replace(b'"result"', space + b'"result"')
        assert ALL.filtered(line) is line


def test_a_large_resource_is_not_shared() -> None:
    for more in (b'"contents":[],', b'"resultType":"complete","contents":[],'):
        line = answer(b'{%b"x":"%b","cacheScope":"public"}' % (more, b"x" * MAX_LIST_BYTES))
        found = PRIVATE.filtered(line)
        assert found == line.replace(b'"public"', b'"private"')
        assert ALL.filtered(line) is line


def test_a_large_list_whose_id_looks_like_a_result() -> None:
    ident = json.dumps('{"result":{"content":').encode()
    line = b'{"id":%b,"result":{"tools":[{"name":"x"}],"y":"%b"}}' % (ident, b"y" * WHOLE_BYTES)
    found = ALL.filtered(line)
    assert found is not None
    assert b'"tools":[]' in found


@pytest.mark.parametrize(
    ("lists", "result", "scope"),
    [
        (PRIVATE, {"resources": [], "cacheScope": "public"}, "private"),
        (PRIVATE, {"resourceTemplates": [], "cacheScope": "public"}, "private"),
        (PRIVATE, {"contents": [], "cacheScope": "public"}, "private"),
        (PRIVATE, {"tools": [], "cacheScope": "public"}, "public"),
        (PRIVATE, {"cacheScope": "public"}, "public"),
        (PRIVATE, {"contents": [], "cacheScope": "private"}, "private"),
        (TOOLS, {"tools": [], "cacheScope": "public"}, "private"),
        (ALL, {"resources": [], "cacheScope": "public"}, "public"),
    ],
)
def test_what_others_may_see(lists: VisibleLists, result: dict[str, Any], scope: str) -> None:
    for line in (
        answer(json.dumps(result).encode()),
        answer(json.dumps(result | {"a": "\ud800"}).encode()),
    ):
        found = lists.filtered(line)
        assert found is not None
        assert json.loads(found)["result"]["cacheScope"] == scope
        assert found is line or scope == "private"


def test_what_is_listed_is_told() -> None:
    ALL.filtered(answer(b'{"tools":[{"name":"x"},{"name":"a"},{}],"nextCursor":"2"}'))
    ALL.filtered(answer(b'{"resources":[],"nextCursor":null}'))
    assert LISTED == [("tools", ["x", "a"], True), ("resources", [], False)]


names = st.text(max_size=4)


@given(st.lists(st.fixed_dictionaries({"name": names, "x": st.integers() | names})))
def test_any_names(tools: list[dict[str, Any]]) -> None:
    found = ALL.filtered(answer(json.dumps({"tools": tools}).encode()))
    assert found is not None
    kept = [each for each in tools if not each["name"].startswith("x")]
    assert json.loads(found)["result"]["tools"] == kept
