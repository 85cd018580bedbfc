"""One backend process: its three pipes, its end, and what its session hears of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ENDLESS_FACTOR, FULL_SECONDS, SMALL_BYTES, STDERR_LINE_BYTES
from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.interfaces import IBackend
from mcpbridge.jsonrpc.malformed_output import UTF16, Lost
from mcpbridge.pacer import ENDS, PACED_SECONDS, Pacer
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.stdio.backend import EXIT_NEWS_SECONDS, StdioBackend
from mcpbridge.stdio.stdout_reader import REST_SECONDS
from mcpbridge.testing import FakeReactor, FakeTree

MESSAGE = b'{"jsonrpc":"2.0","method":"notifications/message"}'
SETTINGS = ServerSettings(
    command="cat", max_message_bytes=100, max_waiting_messages=2, stop_grace=1, kill_grace=2
)


class Made:
    """A backend that runs; `told` is what its session hears."""

    def __init__(
        self, *, begin: bool = True, remove: Callable[[bool], Deferred[None]] | None = None
    ) -> None:
        self.reactor = FakeReactor()
        self.pacer = Pacer(self.reactor)
        self.tree = FakeTree()
        self.told: list[tuple[str, Any]] = []
        #: Of those that cost nothing.
        self.mistakes: list[tuple[str, bytes]] = []
        self.reaped: list[int] = []
        self.backend = StdioBackend(
            SETTINGS,
            self.reactor,
            self,
            "0c8a4a3e",
            self.reaped.append,
            remove=remove,
            pacer=self.pacer,
        )
        self.process = self.reactor.spawnProcess(self.backend, "cat", ["cat"])
        self.pid = self.process.pid
        if begin:
            self.backend.begin(self.process.pid, self.tree)

    # IBackendReceiver.

    def messages_received(self, lines: list[bytes]) -> None:
        self.told.append(("messages", lines))

    def message_lost(self, lost: Lost) -> None:
        self.told.append((lost.fault, lost.ident))

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        self.mistakes.append((fault, line))

    def diagnostics_received(self, lines: list[bytes]) -> None:
        self.told.append(("stderr", lines))

    def input_closed(self, reason: str) -> None:
        self.told.append(("input", reason))

    def output_closed(self, reason: str) -> None:
        self.told.append(("output", reason))

    def be_busy(self) -> None:
        """Use up the time that this iteration of the reactor has for ends of processes."""

        def work() -> None:
            self.reactor.rightNow += PACED_SECONDS

        self.pacer.run(ENDS, work)

    def heard(self) -> list[tuple[str, Any]]:
        """What came of its output."""
        return [(what, data) for what, data in self.told if what != "input"]

    def assert_over(self, *stopped: Deferred[None]) -> None:
        """Nothing of it is left, and who waited knows."""
        assert all(each.called for each in stopped)
        assert self.reactor.getDelayedCalls() == []
        assert self.reaped == [self.pid]


def test_backend_provides_the_interface() -> None:
    verifyObject(IBackend, Made().backend)


# stdout.


LINES = st.sampled_from(
    [
        b'{"a":1}',
        b'{"b":[]}',
        b'{"c":1}\r',
        b"[1]",
        b"hello",
        b"",
        b'{"x":"' + b"x" * SETTINGS.max_message_bytes + b'"}',
    ]
)


@given(st.lists(LINES, max_size=8), st.booleans())
def test_whole_messages_are_read_as_their_bytes_one_by_one(lines: list[bytes], end: bool) -> None:
    """Whole messages take a shorter way."""
    output = b"\n".join(lines) + (b"\n" if end else b"")
    told = []
    for pieces in ([output], [output[at : at + 1] for at in range(len(output))]):
        made = Made()
        for piece in pieces:
            made.process.say(piece)
        messages = [line for what, data in made.told if what == "messages" for line in data]
        told.append((messages, sorted(str(each) for each in made.told if each[0] != "messages")))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([b"[1]\n"], [("messages", [b"[1]"])]),
        ([b"[1]\n[2]\n[3]"], [("messages", [b"[1]", b"[2]"])]),
        ([b'{"half":', b"1", b"}\n"], [("messages", [b'{"half":1}'])]),
        ([b"\n  \n\r\n"], []),
        ([b"[1]\r\n"], [("messages", [b"[1]"])]),
        ([b"  [1]\n"], [("messages", [b"  [1]"])]),
        ([b"hello\n"], [("stderr", [b"stdout: hello"])]),
        ([b"[INFO] ready\n"], [("stderr", [b"stdout: [INFO] ready"])]),
        ([b" [1]\n[INFO]\n"], [("messages", [b" [1]"]), ("stderr", [b"stdout: [INFO]"])]),
        (
            [b"[1]\nhello\n {}\n"],
            [("messages", [b"[1]"]), ("stderr", [b"stdout: hello"]), ("messages", [b" {}"])],
        ),
    ],
)
def test_lines_of_stdout(pieces: list[bytes], told: list[Any]) -> None:
    """
    Each line of stdout is a message, also one that pauses in its middle; blank
    lines and `\\r\\n` are removed.  Other lines are logged like stderr, and marked.
    """
    made = Made()
    for piece in pieces:
        made.process.say(piece)
    assert made.told == told


@pytest.mark.parametrize(
    ("rest", "told", "logged"),
    [
        (MESSAGE, [("messages", [MESSAGE])], False),
        (MESSAGE + b"\r", [("messages", [MESSAGE])], False),
        (b"[" + MESSAGE + b"]", [("messages", [b"[" + MESSAGE + b"]"])], False),
        (MESSAGE[:-1], [], True),
        (b"  ", [], False),
    ],
)
def test_a_last_line_without_an_end(
    rest: bytes, told: list[Any], logged: bool, log_lines: list[str]
) -> None:
    """A last line that no newline ended counts if it is whole; its half is not passed on."""
    made = Made()
    made.process.say(b"[1]\n" + rest)
    made.process.close_output()
    assert made.told[1:] == told
    # Its exit status may be on its way.
    made.reactor.advance(EXIT_NEWS_SECONDS)
    assert made.told[1:-1] == told
    assert made.told[-1] == ("output", "the backend closed its stdout")
    assert any("in the middle of a message of 49 bytes" in line for line in log_lines) is logged
    assert "notifications" not in "".join(log_lines)


@pytest.mark.parametrize("pieces", [[b"[1]\n[" + b"2" * 100], [b"[1]\n", b"[" * 60, b"[" * 41]])
def test_oversized_line_is_reported_by_its_ends(pieces: list[bytes]) -> None:
    """Every resource has a bound, and what comes behind it passes."""
    made = Made()
    for piece in [*pieces, b"\n[2]\n"]:
        made.process.say(piece)
    assert made.told == [
        ("messages", [b"[1]"]),
        ("messages", [b"[2]"]),
        ("oversized", UNSET),
    ]


def test_endless_line_ends_the_output() -> None:
    """ENDLESS_FACTOR: to skip it for ever would keep a core busy."""
    made = Made()
    for _ in range(ENDLESS_FACTOR):
        made.process.say(b"x" * 100)
        assert made.told == []
    made.process.say(b"x")
    assert made.told == [
        ("output", "the backend wrote an unterminated line of more than 6400 bytes")
    ]
    made.process.close_output()
    assert len(made.told) == 1


def test_messages_with_content_length_headers_are_reported_one_by_one() -> None:
    """As language servers have them: without line ends, and the next one right behind."""
    made = Made()
    body = b'{"jsonrpc":"2.0","id":%d,"result":{}}'
    data = b"".join(
        b"Content-Length: %d\r\n\r\n%b" % (len(each), each) for each in (body % 1, body % 2)
    )
    for at in range(0, len(data), 10):
        made.process.say(data[at : at + 10])
    assert made.told == [("headers", 1)]
    made.reactor.advance(REST_SECONDS)
    assert made.told == [("headers", 1), ("headers", 2)]
    made.process.say(MESSAGE + b"\n")
    assert made.told[2:] == [("messages", [MESSAGE])]
    assert made.reactor.getDelayedCalls() == []


def test_message_with_newlines_inside_a_string() -> None:
    """It never looks complete; what it says is not logged."""
    made = Made()
    made.process.say(b'{"jsonrpc":"2.0","id":1,"result":{"text":"one\nsecret\nend"}}\n')
    assert made.told == []
    made.reactor.advance(REST_SECONDS)
    assert made.told == [("lines", 1)]
    made.process.say(MESSAGE + b"\n")
    assert made.told == [("lines", 1), ("messages", [MESSAGE])]
    assert made.mistakes == []


def test_rest_of_a_message_is_awaited_while_the_pipe_is_paused() -> None:
    made = Made()
    made.process.say(b"Content-Length: %d\n%b" % (len(MESSAGE), MESSAGE))
    made.backend.pause()
    made.reactor.advance(2 * REST_SECONDS)
    made.backend.resume()
    made.process.say(b"\n")
    made.reactor.advance(REST_SECONDS)
    assert made.told == [("stderr", [b"stdout: Content-Length: 50"]), ("messages", [MESSAGE])]
    assert made.reactor.getDelayedCalls() == []


@pytest.mark.parametrize("ends", [True, False])
def test_waiting_for_the_rest_ends_with_the_backend(ends: bool) -> None:
    """REST_SECONDS: nothing is left of it."""
    made = Made()
    made.process.say(b"Content-Length: 99\n{")
    assert len(made.reactor.getDelayedCalls()) == 1
    if ends:
        made.backend.stop()
    else:
        made.process.close_output()
        assert ("stderr", [b"stdout: Content-Length: 99"]) in made.told
    assert not made.backend._stdout._rest_timer.is_running


def test_stopped_backend_does_not_wait_for_the_rest() -> None:
    """By what stands before the header, in the same read."""
    made = Made()
    made.messages_received = lambda lines: made.backend.stop()  # type: ignore[method-assign, assignment]
    before = len(made.reactor.getDelayedCalls())
    made.process.say(MESSAGE + b"\nContent-Length: 99\n")
    malformed = made.backend._stdout._malformed
    assert malformed is not None
    assert malformed.body_size == 99
    assert not made.backend._stdout._rest_timer.is_running
    assert before == 0


def test_unfinished_message_is_text_at_the_end_of_stdout() -> None:
    made = Made()
    made.process.say(b"[\n")
    assert made.told == []
    made.process.close_output()
    assert made.told == [("stderr", [b"stdout: ["])]
    assert made.mistakes == [("text", b"[")]


def test_utf16_ends_the_output() -> None:
    made = Made()
    made.process.say('{"jsonrpc":"2.0"}\n'.encode("utf-16"))
    assert made.told == [("output", UTF16)]
    assert made.mistakes == [("utf-16", b"")]


def test_line_of_exactly_the_limit_passes() -> None:
    made = Made()
    line = b'{"%b":0}' % (b"x" * 94)
    assert len(line) == 100
    made.process.say(line + b"\n")
    assert made.told == [("messages", [line])]


# stderr.


def test_lines_of_stderr() -> None:
    """Stderr lines, whatever the bytes are."""
    made = Made()
    made.process.complain(b"one\ntw")
    made.process.complain(b"o\r\n\xff\n\nhalf")
    made.process.close_output(2)
    assert made.told == [("stderr", [b"one"]), ("stderr", [b"two", b"\xff"]), ("stderr", [b"half"])]


def test_long_line_of_text_is_cut() -> None:
    """A stderr line is cut at 64 KiB, the session lives."""
    made = Made()
    made.process.complain(b"x" * STDERR_LINE_BYTES * 2)
    made.process.complain(b"x\nnext\n")
    assert made.told == [("stderr", [b"x" * STDERR_LINE_BYTES, b"next"])]


# stdin.


def test_messages_go_to_stdin_a_line_each() -> None:
    made = Made()
    made.backend.send(b"[1]")
    made.backend.send(b"[2]")
    assert made.process.written == [b"[1]\n", b"[2]\n"]


def test_a_backend_that_does_not_read() -> None:
    """The queue towards a backend is bounded; what was taken is not lost."""
    made = Made()
    made.process.producer.pauseProducing()
    made.backend.send(b"[1]")
    made.backend.send(b"[2]")
    with pytest.raises(BackendBusy):
        made.backend.send(b"[3]")
    made.process.producer.resumeProducing()
    assert made.process.written == [b"[1]\n", b"[2]\n"]


def test_a_backend_that_closes_its_stdin_is_ended() -> None:
    """The backend closes its stdin: the session ends, what it still says passes."""
    made = Made()
    made.process.close_input()
    assert made.told == [("input", "the backend closed its stdin")]
    with pytest.raises(UnknownSession):
        made.backend.send(b"[1]")
    made.process.say(b"[2]\n")
    assert made.told[-1] == ("messages", [b"[2]"])
    made.reactor.advance(SETTINGS.stop_grace)
    assert made.tree.signals == [("leader", "SIGTERM")]


@pytest.mark.parametrize(
    ("signalled", "reason"),
    [(True, "the backend closed its stdin"), (False, "the backend ended (signal 15)")],
)
def test_first_reason_of_an_end_is_reported(signalled: bool, reason: str) -> None:
    """A signal of the bridge's own is no news, unlike one that somebody else sent."""
    made = Made()
    made.process.close_input()
    if signalled:
        made.reactor.advance(SETTINGS.stop_grace)
    assert made.tree.signals == [("leader", "SIGTERM")] * signalled
    made.process.exit(0, 15)
    made.process.loseConnection()
    made.tree.answer()
    assert made.heard() == [("output", reason)]
    made.assert_over(made.backend.stop())


# Backpressure.


def test_pause_and_resume() -> None:
    """A client that does not read stops the reading of its own backend."""
    made = Made()
    made.backend.pause()
    made.backend.pause()
    assert made.process.paused
    made.backend.resume()
    assert not made.process.paused


# Its end.


def test_stop_closes_stdin_and_discards_further_output() -> None:
    """The backend is told and reaped."""
    made = Made()
    made.backend.pause()
    first = made.backend.stop()
    assert 0 in made.process.pipes  # not within an event
    made.reactor.advance(0)
    assert 0 not in made.process.pipes
    assert not made.process.paused
    made.backend.pause()
    assert not made.process.paused
    made.process.say(b"[1]\nhello\n" + b"x" * 200)
    made.process.complain(b"oops\n")
    second = made.backend.stop()
    made.process.end()
    assert not first.called
    made.tree.answer()
    # Its last words may say why it has failed.
    assert made.told == [("stderr", [b"oops"])]
    made.assert_over(first, second)
    made.assert_over(made.backend.stop())


def test_ends_of_many_backends_are_paced() -> None:
    """What a client sends meanwhile is refused, and what the backend writes is dropped."""
    made = Made()
    made.be_busy()
    stopped = made.backend.stop()
    made.process.say(MESSAGE + b"\n")
    with pytest.raises(UnknownSession):
        made.backend.send(MESSAGE)
    assert 0 in made.process.pipes
    made.reactor.advance(0)
    assert 0 not in made.process.pipes
    made.process.end()
    made.tree.answer()
    assert made.told == []
    made.assert_over(stopped)


@pytest.mark.parametrize("stops", [False, True])
def test_closed_stdin_of_many_backends_is_reported_in_turn(stops: bool) -> None:
    made = Made()
    made.be_busy()
    made.process.close_input()
    assert made.told == []
    if stops:
        made.backend.stop()
    made.reactor.advance(0)
    assert made.told == ([] if stops else [("input", "the backend closed its stdin")])
    made.process.end()
    made.tree.answer()
    stopped = made.backend.stop()
    made.assert_over(stopped)


def test_an_exit_that_waits_for_its_turn_is_the_reason_of_the_end() -> None:
    """And not that stdout is closed, which is known first."""
    made = Made()

    def exit_in_turn() -> None:
        made.be_busy()
        made.pacer.run(ENDS, lambda: made.process.exit(7))

    # Just before the wait for its exit is over.
    made.reactor.callLater(EXIT_NEWS_SECONDS, exit_in_turn)
    made.process.close_output(1)
    made.reactor.advance(EXIT_NEWS_SECONDS)
    assert made.heard() == [("output", "the backend ended (exit status 7)")]
    made.process.close_input()
    made.process.close_output(2)
    made.tree.answer()
    made.assert_over(made.backend.stop())


def test_stopped_backend_is_freed_without_the_garbage_collector() -> None:
    """With thousands of sessions a collection takes long, and keeps others waiting."""
    made = Made()
    stopped = made.backend.stop()
    made.process.end()
    made.tree.answer()
    made.assert_over(stopped, made.backend.stop())
    with pytest.raises(UnknownSession):
        made.backend.send(MESSAGE)
    made.backend.pause()
    made.backend.resume()
    backend = weakref.ref(made.backend)
    gc.disable()
    try:
        # As Twisted does when the process has ended.
        del made.backend, made.process.protocol
        assert backend() is None
    finally:
        gc.enable()


def test_stop_waits_for_the_tree_and_for_the_reaping() -> None:
    """The permit returns when the tree is gone and reaped, not before."""
    made = Made()
    stopped = made.backend.stop()
    made.reactor.advance(SETTINGS.stop_grace)
    made.process.end(signalled=15)
    made.tree.rest = [11]
    made.tree.answer()
    assert made.tree.signals == [("leader", "SIGTERM"), ("11", "SIGTERM")]
    assert not stopped.called
    made.tree.rest = []
    made.tree.answer()
    made.assert_over(stopped)


def test_stop_waits_for_the_pipes_to_be_closed() -> None:
    """No leaked descriptor: the transport's own word that all are closed comes last."""
    made = Made()
    setattr(made.process, "loseConnection", lambda: None)  # noqa: B010
    stopped = made.backend.stop()
    made.process.exit()
    made.tree.answer()
    made.process.close_output(1)
    made.reactor.advance(0)
    assert not stopped.called
    made.process.close_output(2)
    made.assert_over(stopped)


def test_pipes_held_by_another_process_are_closed() -> None:
    """No leaked descriptor: once the tree is gone, nobody else's end is waited for."""
    made = Made()
    stopped = made.backend.stop()
    made.process.exit()
    assert made.process.pipes
    made.tree.answer()
    made.assert_over(stopped)


@pytest.mark.parametrize(
    ("graces", "signalled", "interrupted"),
    [(0, None, False), (0, 9, True), (1, 15, True), (1, None, True)],
)
def test_stop_waits_for_the_container(
    graces: int, signalled: int | None, interrupted: bool
) -> None:
    """
    A container is removed when the tree of its CLI is gone; only then is the
    session over.
    """
    asked: list[bool] = []
    removed: Deferred[None] = Deferred()

    def remove(killed: bool) -> Deferred[None]:
        asked.append(killed)
        return removed

    made = Made(remove=remove)
    stopped = made.backend.stop()
    made.reactor.advance(graces * SETTINGS.stop_grace)
    made.process.end(signalled=signalled)
    assert asked == []
    made.tree.answer()
    assert asked == [interrupted]
    assert not stopped.called
    assert not made.backend.stop().called
    removed.callback(None)
    made.assert_over(stopped, made.backend.stop())


@pytest.mark.parametrize(
    ("status", "signalled", "text"),
    [(0, None, "exit status 0"), (3, None, "exit status 3"), (0, 9, "signal 9")],
)
def test_a_backend_that_ends_by_itself(status: int, signalled: int | None, text: str) -> None:
    """The backend exits: the stream ends with what it wrote last, the child is reaped."""
    made = Made()
    made.process.exit(status, signalled)
    assert made.backend.exit_status == text
    assert made.told == [("input", f"the backend ended ({text})")]
    made.process.say(b"[1]\n")
    made.process.complain(b"bye\n")
    made.process.loseConnection()
    made.tree.answer()
    assert made.heard() == [
        ("messages", [b"[1]"]),
        ("stderr", [b"bye"]),
        ("output", f"the backend ended ({text})"),
    ]
    made.assert_over(made.backend.stop())


def test_a_backend_that_ends_before_it_began() -> None:
    """Reaped within the spawn: there is no pid to signal, and the session still hears of it."""
    made = Made(begin=False)
    made.process.exit(127)
    made.backend.begin(made.process.pid, made.tree)
    assert made.told == []
    made.reactor.advance(0)
    assert made.told == [("input", "the backend ended (exit status 127)")]
    made.process.loseConnection()
    made.tree.answer()
    assert made.told[-1] == ("output", "the backend ended (exit status 127)")
    assert made.backend.stop().called
    assert made.reaped == []
    assert made.reactor.getDelayedCalls() == []


def test_stdout_held_by_another_process_is_not_awaited() -> None:
    """The backend exits, the stream ends, also where its pipe does not."""
    made = Made()
    made.process.exit()
    made.tree.answer()
    made.process.say(b"[1]\n")
    made.reactor.advance(SETTINGS.kill_grace - 0.01)
    assert made.told[1:] == [("messages", [b"[1]"])]
    made.reactor.advance(0.01)
    assert made.told[2:] == [("output", "the backend ended (exit status 0)")]
    made.assert_over(made.backend.stop())


def test_slow_client_gets_the_last_output() -> None:
    """While the client does not keep up, the deadline for what is left does not count."""
    made = Made()
    made.backend.pause()
    made.process.exit()
    made.tree.answer()
    made.reactor.pump([SETTINGS.kill_grace] * 10)
    assert len(made.told) == 1
    made.backend.resume()
    made.process.say(b"[1]\n")
    made.process.loseConnection()
    assert made.heard() == [
        ("messages", [b"[1]"]),
        ("output", "the backend ended (exit status 0)"),
    ]
    made.assert_over(made.backend.stop())


def test_end_of_stdout_is_reported_once() -> None:
    made = Made()
    made.process.close_output()
    made.process.end()
    made.tree.answer()
    assert [what for what, _ in made.told].count("output") == 1
    made.assert_over(made.backend.stop())


def test_the_end_of_stdout_waits_for_the_exit_status() -> None:
    """A backend that exits closes its stdout first; the reason is that it ended."""
    made = Made()
    made.process.close_output()
    made.process.exit(3)
    assert made.told[-1] == ("output", "the backend ended (exit status 3)")
    made.reactor.advance(EXIT_NEWS_SECONDS)
    assert [name for name, _ in made.told].count("output") == 1


def test_pipes_that_processes_have_closed_take_turns() -> None:
    """Those of hundreds may be closed in one iteration of the reactor."""
    made = Made()
    lost: list[str] = []

    def lose_first() -> None:
        lost.append("first")
        made.reactor.rightNow += PACED_SECONDS

    made.backend.lose_in_turn(lose_first)
    made.backend.lose_in_turn(lambda: lost.append("second"))
    assert lost == ["first"]
    made.reactor.advance(0)
    assert lost == ["first", "second"]


# The budget.


class Large(Made):
    """A backend that may write large messages, of 200,000 bytes, and what all may hold."""

    def __init__(self, budget: ResponseBudget) -> None:
        super().__init__(begin=False)
        settings = ServerSettings(command="cat", max_message_bytes=3 * SMALL_BYTES)
        self.backend = StdioBackend(
            settings, self.reactor, self, "0c8a4a3e", self.reaped.append, budget
        )
        self.process = self.reactor.spawnProcess(self.backend, "cat", ["cat"])
        self.backend.begin(self.process.pid, self.tree)


HALF = b'{"a":"' + b"x" * 2 * SMALL_BYTES


def test_a_large_line_counts_until_it_is_complete() -> None:
    budget = ResponseBudget(10 * SMALL_BYTES, Clock())
    made = Large(budget)
    made.process.say(HALF[:SMALL_BYTES])
    assert budget.used == 0
    made.process.say(HALF[SMALL_BYTES:])
    assert budget.used == len(HALF)
    made.process.say(b'"}\n{"b"')
    assert budget.used == 0
    assert made.told == [("messages", [HALF + b'"}'])]


@pytest.mark.parametrize("end", ["too long", "stopped", "output", "go on"])
def test_large_line_is_paused_while_the_budget_is_full(end: str) -> None:
    """Its backend is not read, whatever its client says; small lines pass."""
    clock = Clock()
    budget = ResponseBudget(SMALL_BYTES, clock)
    budget.take(SMALL_BYTES + 1)
    made: Any = Large(budget)
    other = Large(budget)
    other.process.say(b"[1]\n[2")
    assert other.told == [("messages", [b"[1]"])]
    made.process.say(HALF)
    assert made.process.paused
    made.backend.resume()
    assert made.process.paused
    if end == "too long":
        made.process.say(HALF)
        assert budget.used == SMALL_BYTES + 1
    elif end == "stopped":
        made.backend.stop()
        assert budget.used == SMALL_BYTES + 1
        assert not made.process.paused
    elif end == "output":
        made.process.close_output(1)
        assert budget.used == SMALL_BYTES + 1
    else:
        # Its client does not keep up either.
        made.backend.pause()
        clock.advance(FULL_SECONDS)
        assert made.process.paused
        made.backend.resume()
        assert not made.process.paused
        made.process.say(b'"}\n')
        assert made.told == [("messages", [HALF + b'"}'])]
    budget.give_back(budget.used)
    clock.advance(FULL_SECONDS)
    assert clock.getDelayedCalls() == []
