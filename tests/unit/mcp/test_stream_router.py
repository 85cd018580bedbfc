"""Which message goes on which stream, and what a client that comes back gets."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from mcpbridge.errors import (
    CannotResume,
    EventsGone,
    IdInUse,
    SessionBusy,
    StreamTaken,
    UnknownSession,
)
from mcpbridge.jsonrpc.envelope import Envelope, peek
from mcpbridge.jsonrpc.members import encode
from mcpbridge.mcp.inflight import ASKED_KEPT, CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.mcp.stream_delivery import TAKEOVER_SECONDS, TAKEOVERS
from mcpbridge.mcp.stream_events import Event
from mcpbridge.mcp.stream_router import StreamRouter
from mcpbridge.session.memory_event_store import MemoryEventLog


class Connection:
    """An outlet that remembers."""

    takes_events = True

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = ""
        #: Whether an answer that comes first is all of the response.
        self.plain = False
        self.whole: list[bytes] = []
        #: How many of the last events are still in its buffer.
        self.behind = 0

    def unwritten(self) -> int:
        assert not self.over
        return self.behind

    def answer(self, line: bytes) -> bool:
        assert not self.over
        if self.plain and not self.events:
            self.whole.append(line)
            self.over = "whole"
        return bool(self.whole)

    def send(self, events: list[Event], final: bool) -> None:
        assert events
        assert not self.over
        self.events += events
        if final:
            self.over = "final"

    def end(self) -> None:
        assert not self.over
        self.over = "end"

    def displaced(self) -> None:
        assert not self.over
        self.over = "displaced"

    @property
    def idents(self) -> list[str]:
        return [ident for ident, _ in self.events]

    @property
    def lines(self) -> list[bytes]:
        return [line for _, line in self.events]


class Routed:
    """A router, its store, and what it has said to the backend."""

    def __init__(self, *, kept: int = 100, waiting: int = 100, json_only: bool = False) -> None:
        self.store = MemoryEventLog(kept, 1 << 20)
        self.to_backend: list[Any] = []
        self.now = 0.0
        self.reported: list[tuple[str, bytes]] = []
        #: When each question that waits is due.
        self.held: list[float | None] = []
        self.router = StreamRouter(
            self.store,
            max_waiting_events=waiting,
            max_waiting_bytes=1000,
            answer_backend=lambda line: self.to_backend.append(json.loads(line)),
            json_only=json_only,
            now=lambda: self.now,
            input_timeout=60,
            request_waits=lambda: self.held.append(self.router.due),
            report=lambda why, line: self.reported.append((why, line)),
        )

    def post(self, *ids: Any, token: Any = None) -> Connection:
        connection = Connection()
        self.name = self.router.open_post([(ident, token) for ident in ids], connection)
        return connection

    def get(self) -> Connection:
        connection = Connection()
        assert self.router.open_get(connection) == "0"
        return connection

    def resume(self, last: str) -> Connection:
        connection = Connection()
        assert self.router.resume(last, connection) == last.partition("-")[0]
        return connection

    def say(self, **members: Any) -> bytes:
        """A message of the backend is routed; returns its line."""
        line = json.dumps({"jsonrpc": "2.0", **members}).encode()
        self.router.route(line)
        return line

    def answer(self, ident: Any) -> bytes:
        return self.say(id=ident, result={})

    def notify(self, method: str = "notifications/message", **params: Any) -> bytes:
        return self.say(method=method, params=params)

    def ask(self, ident: Any) -> bytes:
        return self.say(id=ident, method="sampling/createMessage")

    @property
    def refused(self) -> list[Any]:
        """The ids of the backend's requests that were answered by the router."""
        for each in self.to_backend:
            assert each["jsonrpc"] == "2.0"
            assert each["error"]["code"] == -32000
            assert "did not reach the client" in each["error"]["message"]
        return [each["id"] for each in self.to_backend]


# Answers.


def test_answers_go_to_their_requests() -> None:
    """promise: each message on exactly one stream, ids with their JSON type."""
    routed = Routed()
    one, text, null = routed.post(1), routed.post("1"), routed.post(None)
    assert routed.name == "3"
    lines = [routed.answer("1"), routed.answer(1.0), routed.answer(None)]
    assert [text.events, one.events, null.events] == [
        [("2-1", lines[0])],
        [("1-1", lines[1])],
        [("3-1", lines[2])],
    ]
    assert {one.over, text.over, null.over} == {"final"}
    assert routed.router.in_flight == 0
    assert not routed.router.has_sinks
    assert routed.router.dropped.total() == 0


def test_an_answer_that_is_all_of_a_response_is_not_kept() -> None:
    """Nobody has an event id to come back to it with."""
    routed = Routed()
    one, two, three = routed.post(1), routed.post(2), routed.post(3, 4)
    one.plain = two.plain = three.plain = True
    progress = routed.say(method="notifications/progress", params={"progressToken": 0})
    answers = [routed.answer(each) for each in (1, 2, 3, 4)]
    assert (one.whole, two.whole, one.events, two.events) == ([answers[0]], [answers[1]], [], [])
    assert (three.lines, three.whole, three.over) == (answers[2:], [], "final")
    assert len(routed.store) == 2
    assert not routed.router.has_sinks
    with pytest.raises(CannotResume):
        routed.resume("1-0")
    assert routed.get().lines == [progress]


def test_an_answer_behind_other_messages_is_an_event() -> None:
    routed = Routed()
    one = routed.post(1)
    one.plain = True
    lines = [routed.notify(n=1), routed.answer(1)]
    assert (one.lines, one.whole) == (lines, [])
    assert routed.resume("1-1").lines == lines[1:]


def test_an_answer_without_a_connection_is_kept() -> None:
    routed = Routed()
    one = routed.post(1)
    one.plain = True
    routed.router.detach("1", one)
    assert (routed.answer(1), one.whole) == (routed.resume("1-0").lines[0], [])


def test_error_is_an_answer() -> None:
    routed = Routed()
    one = routed.post(1)
    line = routed.say(id=1, error={"code": -1, "message": "no"})
    assert one.lines == [line]


def test_answer_to_no_request_is_counted() -> None:
    """A GET stream has no answers (2025-03-26, "Listening for Messages from the Server")."""
    routed = Routed()
    get, one = routed.get(), routed.post(1)
    for ident in (2, "1", None):
        routed.answer(ident)
    routed.answer(1)
    routed.answer(1)
    assert len(one.events) == 1
    assert get.events == []
    assert routed.router.dropped == {"unasked": 4}


def test_answers_of_a_batch_end_its_stream_together() -> None:
    """promise: batches of 2025-03-26; answers in any order, the last one is final."""
    routed = Routed()
    batch = routed.post(1, 2, "2")
    lines = [routed.answer(2), routed.answer("2")]
    assert len(batch.events) == 2
    lines.append(routed.answer(1))
    assert batch.over == "final"
    assert batch.events == [(f"1-{at}", line) for at, line in enumerate(lines, 1)]


@pytest.mark.parametrize("ids", [(1,), (1.0,), (2, 1), ("a", "a"), (3, 3.0), ("\ud800", "\ud800")])
def test_id_that_is_still_open_is_refused(ids: Sequence[Any]) -> None:
    routed = Routed()
    routed.post(1)
    with pytest.raises(IdInUse, match="the id "):
        routed.post(*ids)
    assert routed.router.in_flight == 1
    assert routed.post("1")
    assert routed.name == "2"
    routed.answer(1)
    assert routed.post(1)


def test_id_in_a_refusal_is_cut() -> None:
    routed = Routed()
    routed.post("x" * 1000)
    with pytest.raises(IdInUse) as caught:
        routed.post("x" * 1000)
    assert len(caught.value.body()) < 400


@pytest.mark.parametrize("ident", [7, "a", "\ud800"])
def test_id_in_use_is_named_for_programs(ident: object) -> None:
    routed = Routed()
    routed.post(ident)
    with pytest.raises(IdInUse) as caught:
        routed.post(ident)
    said = json.loads(caught.value.body())
    assert (said["id"], said["error"]["data"]) == (None, {"requestId": ident})


def test_stream_of_a_client_that_takes_json_alone() -> None:
    """It has nothing but the answer, and nothing of it can be asked for again."""
    routed = Routed()
    post = Connection()
    routed.router.open_post([(1, "t")], post, json_only=True)
    routed.notify("notifications/progress", progressToken="t")
    routed.ask("q")
    with pytest.raises(CannotResume):
        routed.resume("1-0")
    answer = routed.answer(1)
    assert post.events == [("1-1", answer)]
    assert len(routed.get().events) == 2


def test_no_more_requests_than_may_be_open() -> None:
    routed = Routed()
    routed.post(*range(MAX_IN_FLIGHT - 1))
    with pytest.raises(SessionBusy):
        routed.post("a", "b")
    routed.post("a")
    with pytest.raises(SessionBusy):
        routed.post("b")
    routed.answer(0)
    routed.post("b")
    assert routed.router.in_flight == MAX_IN_FLIGHT


def test_abandoned_requests_were_never_made() -> None:
    routed = Routed()
    connection = routed.post(1, 2, token="t")
    routed.router.abandon(routed.name)
    assert (routed.router.in_flight, routed.router.has_sinks) == (0, False)
    assert (connection.events, connection.over) == ([], "")
    routed.router.abandon(routed.name)
    routed.router.abandon("77")
    again = routed.post(1, 2, token="t")
    assert routed.name == "2"
    line = routed.notify("notifications/progress", progressToken="t")
    assert again.lines == [line]
    with pytest.raises(CannotResume):
        routed.resume("1-0")


# Progress, and what belongs to no request or to the only one.


def test_progress_goes_by_its_token() -> None:
    """beat: progress on the stream of its own request, whatever else runs."""
    routed = Routed()
    one, text, get = routed.post(1, token=7), routed.post(2, token="7"), routed.get()
    first = routed.notify("notifications/progress", progressToken=7, progress=1)
    second = routed.notify("notifications/progress", progressToken="7", progress=1)
    routed.answer(1)
    late = routed.notify("notifications/progress", progressToken=7, progress=2)
    unknown = routed.notify("notifications/progress", progress=2)
    assert one.lines[:1] == [first]
    assert text.lines == [second]
    assert get.lines == [late, unknown]


def test_first_holder_of_a_token_keeps_it() -> None:
    routed = Routed()
    one, two, get = routed.post(1, token="t"), routed.post(2, token="t"), routed.get()
    line = routed.notify("notifications/progress", progressToken="t")
    routed.answer(1)
    late = routed.notify("notifications/progress", progressToken="t")
    assert one.lines[:1] == [line]
    assert two.lines == []
    assert get.lines == [late]
    routed.answer(2)
    three = routed.post(3, token="t")
    line = routed.notify("notifications/progress", progressToken="t")
    assert three.lines == [line]


@pytest.mark.parametrize("ids", [(1,), (1, 2)])
def test_notification_of_no_request_goes_on_the_only_stream(ids: tuple[int, ...]) -> None:
    routed = Routed()
    get, post = routed.get(), routed.post(*ids)
    lines = [routed.notify(), routed.ask("s")]
    assert post.lines == lines
    routed.post(8)
    others = [routed.notify(), routed.ask("t")]
    routed.answer(8)
    lines.append(routed.notify())
    assert post.lines == lines
    assert get.lines == others


@pytest.mark.parametrize(
    "method",
    [
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    ],
)
def test_changes_of_lists_and_resources_go_on_the_get_stream(method: str) -> None:
    routed = Routed()
    get, post = routed.get(), routed.post(1)
    line = routed.notify(method)
    assert (get.events, post.events) == ([("0-1", line)], [])


@pytest.mark.parametrize("method", ["notifications/a", "notifications/x"])
def test_another_notification_with_a_token_or_an_id_is_on_the_only_stream(method: str) -> None:
    """Only of progress and of a cancellation does the bridge know whose they are."""
    routed = Routed()
    asked = routed.ask("s")
    get, one = routed.get(), routed.post(1, token=7)
    only = routed.notify(method, progressToken=7, requestId="s")
    two = routed.post(2)
    of_two = routed.notify(method, progressToken=7, requestId="s")
    assert (one.lines, two.lines, get.lines) == ([only], [], [asked, of_two])


@pytest.mark.parametrize("method", ["notifications/a", "notifications/x"])
def test_another_notification_withdraws_no_request(method: str) -> None:
    routed = Routed()
    lines = [routed.ask("s"), routed.notify(method, requestId="s")]
    assert routed.get().lines == lines


def test_request_and_its_cancellation_are_on_one_stream() -> None:
    routed = Routed()
    get, post = routed.get(), routed.post(1)
    asked = routed.ask("s")
    routed.post(2)
    cancelled = routed.notify("notifications/cancelled", requestId="s")
    assert post.lines == [asked, cancelled]
    again = routed.notify("notifications/cancelled", requestId="s")
    unknown = routed.notify("notifications/cancelled", requestId=99)
    nothing = routed.notify("notifications/cancelled")
    assert get.lines == [again, unknown, nothing]


def test_answered_and_finished_are_forgotten() -> None:
    """A request's stream is remembered until it is answered, or is over itself."""
    routed = Routed()
    get, post = routed.get(), routed.post(1)
    asked = [routed.ask("a"), routed.ask("b")]
    answer = peek(b'{"jsonrpc":"2.0","id":"a","result":{}}')
    assert answer is not None
    routed.router.answered_backend(answer)
    routed.router.answered_backend(answer)
    first = routed.notify("notifications/cancelled", requestId="a")
    final = routed.answer(1)
    second = routed.notify("notifications/cancelled", requestId="b")
    assert post.lines == [*asked, final]
    assert get.lines == [first, second]


def test_requests_of_the_server_are_bounded() -> None:
    """The oldest is forgotten: what it was on is not known any more."""
    routed = Routed()
    get, post = routed.get(), routed.post(1)
    for number in range(ASKED_KEPT + 1):
        routed.ask(number)
    routed.ask(1)
    assert len(routed.router._asked) == ASKED_KEPT
    routed.notify("notifications/cancelled", requestId=0)
    assert len(get.events) == 1
    routed.notify("notifications/cancelled", requestId=1)
    routed.notify("notifications/cancelled", requestId=2)
    assert len(get.events) == 1
    assert len(post.events) == ASKED_KEPT + 4


# What is no message, and batches.


@pytest.mark.parametrize(
    "line",
    [
        b"Server started",
        b'"\\ud800"',
        b"{}",
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","result":{}}',
        b'{"jsonrpc":"2.0","id":true,"result":{}}',
        b"[[]]",
        b"[1]",
    ],
)
def test_invalid_lines_are_counted(line: bytes) -> None:
    routed = Routed()
    get, post = routed.get(), routed.post(1)
    routed.router.route(line)
    assert get.events == post.events == []
    assert routed.router.dropped == {"invalid": 1}


def test_empty_batch_is_ignored() -> None:
    routed = Routed()
    routed.router.route(b"[]")
    assert routed.router.dropped.total() == 0


@pytest.mark.parametrize("text", [b"x", b"\\ud800"])
def test_batch_is_taken_apart(text: bytes) -> None:
    """Each element on its own stream, as it was written."""
    routed = Routed()
    get, one, two = routed.get(), routed.post(1), routed.post(2)
    first = b'{"jsonrpc":"2.0",  "id":1,"result":"%b"}' % text
    second = b'{"id":2.0,"jsonrpc":"2.0","result":{"a" :1.0}}'
    third = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    routed.router.route(b" [" + second + b" ,\t" + b"5 ," + third + b", " + first + b"] ")
    assert (one.lines, two.lines, get.lines) == ([first], [second], [third])
    assert routed.router.dropped == {"invalid": 1}


def test_answer_with_a_lone_surrogate_reaches_its_client() -> None:
    """beat: JavaScript writes them where it cuts a string."""
    routed = Routed()
    post = routed.post(1)
    line = b'{"jsonrpc":"2.0","id":1,"result":{"text":"\\ud83d"}}'
    routed.router.route(line)
    assert post.lines == [line]


# The GET stream.


def test_waiting_messages_are_flushed_in_order() -> None:
    """promise: nothing is lost while no GET stream is open."""
    routed = Routed()
    lines = [routed.notify(n=1), routed.ask("a"), routed.notify(n=2)]
    get = routed.get()
    assert get.events == [(f"0-{at}", line) for at, line in enumerate(lines, 1)]
    lines.append(routed.notify(n=3))
    assert get.lines == lines
    routed.router.detach("0", get)
    lines.append(routed.notify(n=4))
    assert routed.get().events == [("0-5", lines[4])]
    assert routed.router.dropped.total() == 0


def test_second_get_stream_takes_over() -> None:
    """promise: the newest GET stream has what comes, and the older one ends."""
    routed = Routed()
    old, post = routed.get(), routed.post(1)
    lines = [routed.notify("notifications/tools/list_changed", n=n) for n in range(2)]
    new = routed.get()
    assert (old.over, new.over, post.over) == ("displaced", "", "")
    routed.router.detach("0", old)
    lines.append(routed.notify("notifications/tools/list_changed", n=2))
    assert (old.lines, new.events) == (lines[:2], [("0-3", lines[2])])


def test_unwritten_events_move_to_the_newer_stream() -> None:
    """Each message on one stream, and none is lost with a connection that nobody reads."""
    routed = Routed()
    old = routed.get()
    lines = [routed.notify(n=1), routed.notify(n=2), routed.ask("a")]
    old.behind = 2
    new = routed.get()
    assert new.events == [("0-2", lines[1]), ("0-3", lines[2])]
    assert routed.resume("0-2").lines == lines[2:]
    assert routed.refused == []


def test_unwritten_events_that_are_not_kept_are_counted() -> None:
    routed = Routed(kept=1)
    old = routed.get()
    routed.notify(n=1)
    routed.ask("a")
    last = routed.notify(n=2)
    old.behind = 3
    assert routed.get().lines == []
    assert routed.router.dropped == {"unread": 3}
    assert routed.refused == ["a"]
    assert routed.resume("0-2").lines == [last]


def test_two_clients_do_not_take_the_stream_from_each_other_for_ever() -> None:
    """`TAKEOVERS` in `TAKEOVER_SECONDS`; the next one is told when it may."""
    routed = Routed()
    for _ in range(TAKEOVERS + 1):
        last = routed.get()
        routed.now += 1
    for again in (routed.get, lambda: routed.resume("0-0")):
        with pytest.raises(StreamTaken, match="do two clients use one session") as caught:
            again()
        assert caught.value.retry_after == TAKEOVER_SECONDS - TAKEOVERS + 1
    assert last.over == ""
    post = routed.post(1)
    routed.notify()
    assert routed.resume("1-0").over == ""
    assert post.over == "displaced"
    routed.now = TAKEOVER_SECONDS + 1
    routed.resume("0-0")
    with pytest.raises(StreamTaken):
        routed.get()
    routed.now += 1
    routed.get()


def test_attaching_a_free_stream_is_not_a_takeover() -> None:
    routed = Routed()
    for _ in range(2 * TAKEOVERS):
        routed.router.detach("0", routed.get())


def test_nothing_is_sent_on_a_quiet_get_stream() -> None:
    """An outlet is never given an empty list; `Connection` checks."""
    routed = Routed()
    assert routed.get().events == []
    assert routed.resume("0-0").events == []


def test_oldest_notification_gives_way_and_requests_are_answered() -> None:
    """promise: oldest notifications give way, a request is never dropped silently."""
    routed = Routed(waiting=3)
    lines = [routed.ask("a"), routed.notify(n=1), routed.ask("b"), routed.notify(n=2)]
    assert routed.router.dropped == {"no room": 1}
    assert routed.refused == []
    lines += [routed.ask("c"), routed.ask("d")]
    assert routed.router.dropped == {"no room": 3}
    assert routed.refused == ["a"]
    assert routed.get().lines == [lines[2], lines[4], lines[5]]


def test_request_too_large_to_wait_is_answered() -> None:
    routed = Routed()
    routed.say(id=5, method="m", params="x" * 1000)
    assert routed.refused == [5]
    assert len(routed.router._asked) == 0


# Coming back.


def test_post_stream_is_resumed_in_the_middle() -> None:
    """beat: a client that drops a long call and comes back gets the rest, once."""
    routed = Routed()
    post = routed.post(1, token="t")
    lines = [routed.notify("notifications/progress", progressToken="t", n=n) for n in range(3)]
    routed.router.detach("1", post)
    assert not routed.router.has_sinks
    lines.append(routed.ask("s"))
    assert len(post.events) == 3
    again = routed.resume("1-2")
    assert again.events == [("1-3", lines[2]), ("1-4", lines[3])]
    lines.append(routed.answer(1))
    assert again.lines == lines[2:]
    assert (again.over, post.over) == ("final", "")


def test_finished_stream_is_resumed() -> None:
    routed = Routed()
    post = routed.post(1)
    routed.router.detach("1", post)
    lines = [routed.notify(), routed.answer(1)]
    assert routed.router.in_flight == 0
    for _ in range(2):
        whole = routed.resume("1-0")
        assert (whole.lines, whole.over) == (lines, "final")
    last = routed.resume("1-1")
    assert (last.events, last.over) == ([("1-2", lines[1])], "final")
    nothing = routed.resume("1-2")
    assert (nothing.events, nothing.over) == ([], "end")
    assert not routed.router.has_sinks


def test_resuming_displaces_a_connection_that_is_still_there() -> None:
    """The client may be quicker than the news that its old connection is gone."""
    routed = Routed()
    post, get = routed.post(1), routed.get()
    lines = [routed.notify(n=1), routed.notify(n=2)]
    again = routed.resume("1-1")
    assert (post.over, again.over) == ("displaced", "")
    assert again.lines == lines[1:]
    routed.router.detach("1", post)
    final = routed.answer(1)
    assert again.lines == [lines[1], final]
    routed.notify(n=3)
    other = routed.resume("0-0")
    assert get.over == "displaced"
    assert other.idents == ["0-1"]


def test_get_stream_is_resumed_with_what_was_sent_and_what_waits() -> None:
    routed = Routed()
    get = routed.get()
    lines = [routed.notify(n=1), routed.notify(n=2)]
    routed.router.detach("0", get)
    lines += [routed.notify(n=3), routed.ask("a")]
    again = routed.resume("0-1")
    assert again.events == [(f"0-{at}", lines[at - 1]) for at in (2, 3, 4)]
    assert routed.resume("0-4").events == []
    assert routed.resume("0-2").lines == lines[2:], "what has waited is kept, too"
    assert routed.router.position == 4
    assert routed.get().events == []


@pytest.mark.parametrize(
    "ident",
    [
        "",
        "1",
        "-",
        "1-",
        "-1",
        "1-x",
        "01-0",
        "1-01",
        "+1-0",
        "1-0 ",
        "1-0\n",
        "1--1",
        "\u0661-0",
        "1-" + "9" * 19,
        "1-2",
        "0-2",
        "2-1",
        "3-0",
        "9-1",
        "1-999999999999999999",
    ],
)
def test_events_that_never_were(ident: str) -> None:
    """promise: a GET for what the store has not gets a clear error."""
    routed = Routed()
    get, post = routed.get(), routed.post(1)
    routed.notify()
    routed.notify("notifications/tools/list_changed")
    routed.router.cancel(1)
    routed.post(2)
    with pytest.raises(CannotResume, match="Last-Event-ID"):
        routed.resume(ident)
    assert get.over == ""
    assert post.over == "end"
    if ident != "2-1":
        return
    assert routed.resume("2-0").events == []


def test_events_that_are_kept_no_longer() -> None:
    routed = Routed(kept=2)
    post = routed.post(1)
    for _ in range(3):
        routed.notify()
    with pytest.raises(CannotResume):
        routed.resume("1-0")
    assert post.over == ""
    assert routed.resume("1-1").idents == ["1-2", "1-3"]
    routed.get()
    for _ in range(2):
        routed.notify("notifications/tools/list_changed")
    assert routed.resume("1-3").events == [], "the running stream needs no store for that"
    with pytest.raises(CannotResume):
        routed.resume("1-2")


def test_lost_requests_of_the_backend_are_answered() -> None:
    """promise: never dropped silently, also where a store has let them go."""
    routed = Routed(kept=2)
    post = routed.post(1)
    routed.ask("seen")
    routed.ask("lost")
    for _ in range(2):
        routed.notify()
    with pytest.raises(CannotResume):
        routed.resume("1-1")
    assert routed.refused == [], "a connection has it"
    routed.router.detach("1", post)
    with pytest.raises(CannotResume):
        routed.resume("1-1")
    assert routed.refused == ["lost"]
    with pytest.raises(CannotResume):
        routed.resume("1-1")
    assert routed.refused == ["lost"]
    routed.answer(1)
    with pytest.raises(CannotResume):
        routed.resume("1-0")
    assert routed.refused == ["lost", "seen"]


def test_waiting_requests_are_not_lost_with_others() -> None:
    """What waits for a GET stream still has a chance."""
    routed = Routed(kept=1)
    get = routed.get()
    routed.ask("sent")
    routed.notify()
    routed.router.detach("0", get)
    waiting = routed.ask("waiting")
    with pytest.raises(CannotResume):
        routed.resume("0-0")
    assert routed.refused == ["sent"]
    assert routed.get().events == [("0-3", waiting)]
    routed.notify()
    routed.router.detach("0", get)
    with pytest.raises(CannotResume):
        routed.resume("0-1")
    assert routed.refused == ["sent"], "its connection is open"


def test_request_cancelled_while_it_waits() -> None:
    """Nobody hears of either, and nobody waits for its answer."""
    routed = Routed()
    routed.ask("a")
    asked = routed.ask("b")
    cancelled = routed.notify("notifications/cancelled", requestId="a")
    unknown = routed.notify("notifications/cancelled", requestId="c")
    nothing = routed.notify("notifications/cancelled")
    assert cancelled not in (lines := routed.get().lines)
    assert lines == [asked, unknown, nothing]
    assert len(routed.router._asked) == 1
    assert routed.refused == []


# Questions while several calls run.


def test_a_request_of_the_server_goes_where_it_is_read() -> None:
    """beat: an elicitation of one of two calls reaches its client without a GET stream."""
    routed = Routed()
    one, two, three = routed.post(1), routed.post(2), routed.post(3)
    first = routed.ask("a")
    assert (three.lines, two.lines, one.lines) == ([first], [], [])
    three.takes_events = False
    second = routed.ask("b")
    routed.router.detach("2", two)
    third = routed.ask("c")
    assert (three.lines, two.lines, one.lines) == ([first], [second], [third])
    cancelled = routed.notify("notifications/cancelled", requestId="b")
    assert routed.resume("2-1").lines == [cancelled]
    get = routed.get()
    fourth = routed.ask("d")
    assert get.lines == [fourth]
    assert routed.held == []


@pytest.mark.parametrize("only", [True, False])
def test_a_request_of_the_server_does_not_go_on_a_json_stream(only: bool) -> None:
    """JSON alone, or a connection that is lost: the GET stream has it, if there is one."""
    routed = Routed()
    post, get = routed.post(1), routed.get()
    if only:
        post.takes_events = False
    else:
        routed.router.detach("1", post)
    asked = routed.ask("a")
    assert (get.lines, post.lines) == ([asked], [])


def test_a_request_of_the_server_waits_until_input_timeout() -> None:
    """promise: never nowhere; `input_timeout` later the server has an error."""
    routed = Routed()
    routed.post(1).takes_events = False
    routed.ask("a")
    routed.now = 10.0
    routed.notify(n=1)
    routed.ask("b")
    assert routed.held == [60, 60]
    assert routed.router.due == 60
    routed.now = 59.0
    routed.router.tick()
    assert routed.refused == []
    routed.now = 60.0
    routed.router.tick()
    assert (routed.refused, routed.router.due) == (["a"], 70)
    assert routed.router.dropped == {"unread": 1}
    get = routed.get()
    assert len(get.lines) == 1
    due: float | None = routed.router.due
    assert due is None
    routed.router.tick()
    assert routed.refused == ["a"]


def test_request_that_waited_is_lost_like_any_other() -> None:
    routed = Routed(kept=1)
    routed.ask("a")
    get = routed.get()
    routed.notify()
    routed.router.detach("0", get)
    with pytest.raises(CannotResume):
        routed.resume("0-0")
    assert routed.refused == ["a"]


class Gappy:
    """A store that is not as it should be."""

    def __init__(self, kept: list[tuple[int, bytes]]) -> None:
        self.kept = kept

    def append(self, stream: str, number: int, line: bytes) -> None:
        """Forget it."""

    def after(self, stream: str, number: int) -> list[tuple[int, bytes]]:
        if number == 9:
            raise EventsGone
        return self.kept


@pytest.mark.parametrize("numbers", [[], [1], [2], [1, 3], [2, 1], [1, 2, 3]])
def test_store_with_gaps_is_not_trusted(numbers: list[int]) -> None:
    """Rather an error than a message that is missing, or there twice."""
    store = Gappy([(number, b"{}") for number in numbers])
    router = StreamRouter(
        store, max_waiting_events=9, max_waiting_bytes=9, answer_backend=lambda line: None
    )
    router.open_post([(1, None)], Connection())
    for _ in range(2):
        router.route(b'{"jsonrpc":"2.0","method":"m"}')
    with pytest.raises(CannotResume):
        router.resume("1-0", Connection())


@pytest.mark.parametrize(("json_only", "last"), [(False, "2-0"), (True, "1-0")])
def test_a_store_need_not_know_which_streams_there_were(json_only: bool, last: str) -> None:
    """That it has no events of a stream does not prove that there were none."""
    router = StreamRouter(
        Gappy([]),
        max_waiting_events=9,
        max_waiting_bytes=9,
        answer_backend=lambda line: None,
        json_only=json_only,
    )
    router.open_post([(1, None)], Connection())
    router.cancel(1)
    with pytest.raises(CannotResume):
        router.resume(last, Connection())


# Cancelling.


def test_cancelled_request_ends_its_stream() -> None:
    """promise: `notifications/cancelled` is a cancellation; late answers are dropped."""
    routed = Routed()
    post, get = routed.post(1, token="t"), routed.get()
    sent = routed.notify()
    routed.router.cancel("1")
    assert routed.router.in_flight == 1
    routed.router.cancel(1)
    assert (post.lines, post.over) == ([sent], "end")
    assert routed.router.in_flight == 0
    routed.router.cancel(1)
    routed.answer(1)
    late = routed.notify("notifications/progress", progressToken="t")
    assert get.lines == [late]
    assert routed.router.dropped == {"unasked": 1}
    resumed = routed.resume("1-0")
    assert (resumed.lines, resumed.over) == ([sent], "final")


def test_cancelled_part_of_a_batch() -> None:
    routed = Routed()
    post = routed.post(1, 2)
    routed.router.cancel(1)
    assert post.over == ""
    routed.answer(2)
    assert post.over == "final"
    batch = routed.post(3, 4)
    routed.answer(3)
    routed.router.cancel(4)
    assert (len(batch.events), batch.over) == (1, "end")


def test_cancelled_without_a_connection() -> None:
    routed = Routed()
    post = routed.post(1)
    routed.router.detach("1", post)
    routed.router.cancel(1)
    assert (post.over, routed.router.in_flight) == ("", 0)


# Answers as JSON alone.


def test_json_only_posts_get_their_answers_alone() -> None:
    """promise: `--json-response`: never SSE for answers."""
    routed = Routed(json_only=True)
    get, post = routed.get(), routed.post(1, token="t")
    others = [
        routed.notify("notifications/progress", progressToken="t"),
        routed.notify(),
        routed.ask("a"),
        routed.notify("notifications/cancelled", requestId="a"),
    ]
    assert post.events == []
    line = routed.answer(1)
    assert (post.lines, post.over) == ([line], "final")
    assert get.lines == others
    assert len(routed.store) == len(others)
    with pytest.raises(CannotResume):
        routed.resume("1-0")
    assert routed.resume("0-2").lines == others[2:]


def test_json_only_batch_is_answered_as_a_whole() -> None:
    routed = Routed(json_only=True)
    post = routed.post(1, 2, 3)
    lines = [routed.answer(3), routed.answer(1)]
    assert post.events == []
    with pytest.raises(CannotResume):
        routed.resume("1-0")
    routed.router.cancel(2)
    assert (post.lines, post.over) == (lines, "final")


def test_json_only_cancelled_before_any_answer() -> None:
    routed = Routed(json_only=True)
    post = routed.post(1)
    routed.router.cancel(1)
    assert post.over == "end"


def test_json_only_answer_for_a_client_that_went_is_counted() -> None:
    routed = Routed(json_only=True)
    post = routed.post(1, 2)
    routed.router.detach("1", post)
    routed.answer(1)
    routed.answer(2)
    assert post.events == []
    assert routed.router.dropped == {"unread": 2}
    assert len(routed.store) == 0


# The end.


def error_for(ident: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, "error": {}}).encode()


@pytest.mark.parametrize("json_only", [False, True])
def test_close_answers_every_open_request(json_only: bool) -> None:
    """promise: open requests get an error when the backend exits."""
    routed = Routed(json_only=json_only)
    one, two, get = routed.post("a"), routed.post(1, 2, 3), routed.get()
    gone = routed.post(4, 5)
    routed.router.detach("3", gone)
    answers = [routed.answer(2), routed.answer(4)]
    routed.router.close(error_for)
    assert (one.lines, one.over) == ([error_for("a")], "final")
    assert (two.lines, two.over) == ([answers[0], error_for(1), error_for(3)], "final")
    assert two.idents == ["2-1", "2-2", "2-3"]
    assert (get.events, get.over) == ([], "end")
    assert (gone.events, gone.over) == ([], "")
    assert (routed.router.in_flight, routed.router.has_sinks) == (0, False)
    assert routed.router.dropped.total() == (1 if json_only else 0)


def test_nothing_is_sent_after_close() -> None:
    routed = Routed()
    routed.notify()
    routed.ask("a")
    routed.router.close(error_for)
    assert routed.router.dropped == {"unread": 2}
    routed.notify()
    routed.answer(1)
    assert routed.router.dropped == {"unread": 4}
    for opening in (routed.get, lambda: routed.post(1), lambda: routed.resume("0-0")):
        with pytest.raises(UnknownSession):
            opening()
    routed.router.close(error_for)
    routed.router.cancel(1)
    routed.router.abandon("1")
    routed.router.detach("0", Connection())
    assert routed.refused == []


# Outlets that call back.


class Reentrant(Connection):
    """Goes away, or makes something happen, while it is written to."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.then = then

    def send(self, events: list[Event], final: bool) -> None:
        super().send(events, final)
        self.then()

    def displaced(self) -> None:
        super().displaced()
        self.then()


def test_sink_may_detach_while_it_is_written_to() -> None:
    routed = Routed()
    first = routed.notify(n=1)
    outlet: Reentrant = Reentrant(lambda: routed.router.detach("0", outlet))
    routed.router.open_get(outlet)
    second = routed.notify(n=2)
    assert outlet.lines == [first]
    assert routed.resume("0-1").lines == [second]


def test_messages_from_a_displaced_sink_come_after_the_replay() -> None:
    routed = Routed()
    old = Connection()
    routed.router.open_post([(1, None)], old)
    lines = [routed.notify(n=1), routed.notify(n=2)]
    old = Reentrant(lambda: lines.append(routed.notify(n=3)) if old.over else None)
    routed.router.resume("1-2", old)
    again = routed.resume("1-0")
    assert again.lines == lines
    assert len(lines) == 3


def test_session_may_end_within_a_batch() -> None:
    routed = Routed()
    ended = Reentrant(lambda: routed.router.close(error_for))
    routed.router.open_post([(1, None)], ended)
    routed.router.route(b'[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","method":"m"}]')
    assert len(ended.events) == 1
    assert routed.router.dropped == {"unread": 1}


def test_only_open_request() -> None:
    """None, one, or several, of which none is the only one."""
    routed = Routed()
    found: list[object] = []
    for ident in ("a", "b", "c"):
        found.append(routed.router.only_open)
        routed.post(ident)
    assert found == [msgspec.UNSET, "a", msgspec.UNSET]


# Answers of backends that are not exact.


@pytest.mark.parametrize(("asked", "said"), [(1, "1"), ("1", 1), (0, "0"), (-5, "-5")])
def test_an_id_in_another_spelling(asked: Any, said: Any) -> None:
    """The client gets its own; a message keeps all else as it was written."""
    routed = Routed()
    connection = routed.post(asked, "other")
    routed.router.route(b'{"id":%b, "jsonrpc":"2.0","result":{"x": 1.50}}' % encode(said))
    expected = b'{"id":%b,"jsonrpc":"2.0","result":{"x": 1.50}}' % encode(asked)
    assert connection.lines == [expected]
    assert routed.router.in_flight == 1
    assert routed.reported == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        *((1, "01"), (1, "1.0"), (1, "+1"), (1.0, "1"), (1.5, "1.5"), ("1.0", 1)),
        *(("1", 1.0), ("a", "b"), (1, 2), (1, None)),
    ],
)
def test_an_id_of_no_request(asked: Any, said: Any) -> None:
    routed = Routed()
    connection = routed.post(asked)
    line = routed.answer(said)
    assert connection.lines == []
    assert routed.router.in_flight == 1
    assert routed.reported == [("unasked", line)]


def test_of_two_ids_each_has_its_own_answer() -> None:
    """No other spelling is looked for where the exact id is open."""
    routed = Routed()
    one, other = routed.post(1), routed.post("1")
    first, second = routed.answer("1"), routed.answer(1)
    assert (one.lines, other.lines) == ([second], [first])


def test_an_id_in_another_spelling_once() -> None:
    routed = Routed()
    routed.post(1)
    routed.answer("1")
    line = routed.answer("1")
    assert routed.reported == [("unasked", line)]


@pytest.mark.parametrize("said", [1, "1"])
@pytest.mark.parametrize("again", [None, 1, "1"])
def test_an_id_that_was_cancelled_lately(said: Any, again: Any) -> None:
    """Its answer may be on its way: it is no mistake, and answers nothing else."""
    routed = Routed()
    connection = routed.post(1)
    routed.router.cancel(1)
    assert connection.over
    asked = None if again is None else routed.post(again)
    line = routed.answer(said)
    exact = again == said
    assert routed.reported == []
    if asked is not None:
        assert asked.lines == ([line] if exact else [])
    assert routed.router.dropped["unasked"] == (not exact)


def test_cancelled_kept() -> None:
    """CANCELLED_KEPT: of the oldest it is not known any more."""
    routed = Routed()
    for number in range(CANCELLED_KEPT + 1):
        routed.post(number)
        routed.router.cancel(number)
    late, first = routed.answer(1), routed.answer(0)
    assert late
    assert routed.reported == [("unasked", first)]


@pytest.mark.parametrize(
    "line",
    [b"{", b'{"jsonrpc":"2.0","id":1,"result":NaN}', b'{"level":30}', b'{"jsonrpc":"2.0"}'],
)
def test_invalid_lines_are_reported(line: bytes) -> None:
    routed = Routed()
    routed.router.route(line)
    assert routed.reported == [("invalid", line)]
    assert routed.router.dropped == {"invalid": 1}


def test_a_request_of_the_server_that_was_answered_while_it_waited() -> None:
    """It is sent all the same, and nobody waits for another answer."""
    routed = Routed()
    line = routed.say(id="q", method="roots/list")
    routed.router.answered_backend(Envelope("2.0", id="q", result=msgspec.Raw(b"{}")))
    assert routed.get().lines == [line]
    assert routed.to_backend == []
