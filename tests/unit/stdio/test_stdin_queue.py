"""The queue towards a backend's stdin: bounded, in order, nothing lost without a word."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.stdio.stdin_queue import PIECE_BYTES, StdinQueue
from mcpbridge.twisted_internals import AT_ONCE_BYTES


def made(max_messages: int = 3, max_bytes: int = 100) -> tuple[StdinQueue, list[bytes]]:
    written: list[bytes] = []
    return StdinQueue(written.append, max_messages, max_bytes), written


def test_queue_is_a_push_producer() -> None:
    verifyObject(IPushProducer, made()[0])


def test_message_is_written_at_once_if_the_pipe_is_not_full() -> None:
    """One session's message rate is bounded by the backend."""
    queue, written = made(max_messages=1)
    for line in (b"[1]", b"[2]", b"[3]"):
        queue.send(line)
    assert written == [b"[1]\n", b"[2]\n", b"[3]\n"]
    assert queue.waiting == (0, 0)


def test_while_the_pipe_is_full_messages_wait_in_order() -> None:
    queue, written = made()
    queue.pauseProducing()
    queue.send(b"[1]")
    queue.send(b"[22]")
    assert (written, queue.waiting) == ([], (2, 7))
    queue.resumeProducing()
    queue.send(b"[3]")
    assert (written, queue.waiting) == ([b"[1]\n", b"[22]\n", b"[3]\n"], (0, 0))


def test_a_pipe_that_fills_up_again_is_not_written_to() -> None:
    written: list[bytes] = []

    def write(data: bytes) -> None:
        written.append(data)
        queue.pauseProducing()

    queue = StdinQueue(write, 3, 100)
    for line in (b"[1]", b"[2]", b"[3]"):
        queue.send(line)
    assert written == [b"[1]\n"]
    queue.resumeProducing()
    assert (written, queue.waiting) == ([b"[1]\n", b"[2]\n"], (1, 3))
    queue.resumeProducing()
    assert (written, queue.waiting) == ([b"[1]\n", b"[2]\n", b"[3]\n"], (0, 0))


def test_queue_is_bounded_in_messages() -> None:
    """The queue is bounded in messages (1024); beyond it the POST is refused."""
    limit = ServerSettings(command="cat").max_waiting_messages
    assert limit == 1024
    queue, written = made(max_messages=limit, max_bytes=1 << 30)
    queue.pauseProducing()
    for number in range(limit):
        queue.send(b"%d" % number)
    with pytest.raises(BackendBusy, match="1024 messages") as caught:
        queue.send(b"x")
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    queue.resumeProducing()
    assert written == [b"%d\n" % number for number in range(limit)]


def test_queue_is_bounded_in_bytes() -> None:
    """The queue is bounded in bytes; an empty queue takes any message."""
    queue, _ = made(max_messages=10, max_bytes=100)
    queue.pauseProducing()
    queue.send(b"x" * 99)
    queue.send(b"y" * 1000)
    with pytest.raises(BackendBusy, match=r"2 messages \(1099 bytes\)"):
        queue.send(b"z")
    assert queue.waiting == (2, 1099)


def test_a_large_message_finds_room_in_an_empty_queue() -> None:
    queue, written = made(max_messages=1, max_bytes=1)
    queue.pauseProducing()
    queue.send(b"x" * 1000)
    queue.resumeProducing()
    assert written == [b"x" * 1000 + b"\n"]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("size", [AT_ONCE_BYTES, AT_ONCE_BYTES + 1, 4 * AT_ONCE_BYTES])
def test_very_long_message_is_one_line(waits: bool, size: int) -> None:
    """Whether it is written in one piece or, so as not to be copied, in two."""
    long = b"x" * size
    queue, written = made(max_bytes=1 << 30)
    if waits:
        queue.pauseProducing()
    queue.send(long)
    queue.send(b"[2]")
    queue.resumeProducing()
    assert b"".join(written) == long + b"\n[2]\n"


def test_a_closed_pipe_takes_nothing() -> None:
    """An ended session gets 404, nothing stored."""
    queue, written = made()
    queue.pauseProducing()
    queue.send(b"[1]")
    queue.stopProducing()
    with pytest.raises(UnknownSession):
        queue.send(b"[2]")
    assert (written, queue.waiting) == ([], (0, 0))


LINES = st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" "))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["pause", "resume"]) | LINES))
def test_accepted_messages_are_written_in_order(steps: list[str | bytes]) -> None:
    """Nothing is dropped silently."""
    queue, written = made(max_messages=3, max_bytes=50)
    taken = []
    for step in steps:
        if step == "pause":
            queue.pauseProducing()
        elif step == "resume":
            queue.resumeProducing()
        elif isinstance(step, bytes):
            try:
                queue.send(step)
            except BackendBusy:
                assert queue.waiting[0] >= 3 or queue.waiting[1] >= 50
            else:
                taken.append(step + b"\n")
        assert queue.waiting[0] <= 3
    queue.resumeProducing()
    assert written == taken


def test_a_batch_counts_as_its_messages() -> None:
    """One on each line, and an array by what says of itself that it is a message."""
    queue, written = made(max_messages=4, max_bytes=1000)
    queue.pauseProducing()
    message = b'{"jsonrpc":"2.0","method":"a"}'
    batch = b"[%b,%b]" % (message, message)
    queue.send(batch)
    queue.send(message)
    assert queue.waiting[0] == 3
    for line in (batch, b"\n".join([message] * 2)):
        with pytest.raises(BackendBusy):
            queue.send(line)
    queue.send(message)
    with pytest.raises(BackendBusy):
        queue.send(message)
    queue.resumeProducing()
    assert (len(written), queue.waiting) == (3, (0, 0))
    queue.pauseProducing()
    queue.send(b"\n".join([message] * 9))
    assert queue.waiting[0] == 9, "an empty queue takes any number"


def test_large_message_is_written_in_pieces_without_interleaving() -> None:
    written: list[bytes] = []

    def write(data: bytes) -> None:
        written.append(data)
        queue.pauseProducing()

    queue = StdinQueue(write, 3, 100)
    large = bytes(range(32, 127)) * (4 * PIECE_BYTES // 95)
    queue.send(large)
    queue.send(b"[2]")
    assert max(map(len, written)) <= PIECE_BYTES + 1
    assert queue.waiting == (1, 3), "the large one is under way"
    for _ in range(9):
        queue.resumeProducing()
    assert b"".join(written) == large + b"\n[2]\n"
    queue.send(large)
    queue.stopProducing()
    queue.resumeProducing()
    assert len(b"".join(written)) < 2 * len(large)
