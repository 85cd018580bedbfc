"""The base class of responses: JSON or events, keepalive, slow clients, and the end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.web.response import Response
from tests.unit.web.test_stream_response import (
    COMMENT,
    FakeRequest,
    FakeTransport,
    StalledConnection,
)


class RecordedResponse:
    """A response, and what it reports to its subclass, in order."""

    def __init__(self, transport: Any = None, **settings: Any) -> None:
        recorded = self
        self.clock = Clock()
        self.events: list[str] = []
        self.request = FakeRequest(transport or FakeTransport())

        class ReportingResponse(Response):
            def commit(self) -> None:
                recorded.events.append("begin")

            def client_paused(self) -> None:
                recorded.events.append("paused")

            def client_resumed(self) -> None:
                recorded.events.append("resumed")

            def ended(self) -> None:
                recorded.events.append("over")

        settings_ = ServerSettings(command="x", **settings)
        self.reply = ReportingResponse(self.request, settings_, self.clock)
        self.reply.finished.addCallback(lambda _: self.events.append("finished"))

    def check_finished(self, *events: str) -> None:
        """Check that exactly these events were reported, and that nothing is left to happen."""
        assert self.events == [*events]
        assert self.clock.getDelayedCalls() == []
        assert self.request.producer is None
        assert self.request.channel is None or not self.request.channel.streaming


def test_json_response_has_its_length_and_status_200() -> None:
    recorded = RecordedResponse()
    recorded.reply.write_json(b"{}")
    assert (recorded.request.code, recorded.request.text) == (200, b"{}")
    assert recorded.request.headers == {
        b"Content-Type": b"application/json",
        b"Content-Length": b"2",
    }
    recorded.check_finished("over", "finished")


def test_json_response_has_the_given_status() -> None:
    recorded = RecordedResponse()
    recorded.reply.write_json(b"{}", 404)
    assert recorded.request.code == 404


def test_event_stream_is_never_cached_or_buffered() -> None:
    """The headers tell proxies so."""
    recorded = RecordedResponse()
    recorded.reply.begin(b"first")
    assert recorded.reply.streaming
    assert recorded.request.headers == {
        b"Content-Type": b"text/event-stream",
        b"Cache-Control": b"no-cache",
        b"X-Accel-Buffering": b"no",
    }
    assert verifyObject(IPushProducer, recorded.request.producer)
    assert recorded.request.channel is not None
    assert recorded.request.channel.streaming
    recorded.reply.write(b"second")
    recorded.reply.finish()
    assert recorded.request.written == [b"first", b"second"]
    recorded.check_finished("over", "finished")


def test_stream_begins_when_commit_after_has_passed() -> None:
    """Unless it has begun or finished before."""
    for before in (
        lambda recorded: recorded.reply.begin(b""),
        lambda recorded: recorded.reply.finish(),
    ):
        recorded = RecordedResponse(keepalive_interval=0)
        recorded.reply.commit_after(2)
        before(recorded)
        recorded.clock.advance(2)
        assert "begin" not in recorded.events
    recorded = RecordedResponse()
    recorded.reply.commit_after(2)
    recorded.clock.advance(2)
    recorded.check_finished("begin")


@pytest.mark.parametrize("interval", [0, 5])
def test_open_stream_gets_keepalive_comments(interval: float) -> None:
    """An interval of 0 turns them off."""
    recorded = RecordedResponse(keepalive_interval=interval)
    recorded.reply.begin(b"")
    recorded.clock.pump([1] * 16)
    recorded.reply.finish()
    recorded.clock.pump([5] * 4)
    assert recorded.request.text == COMMENT * (3 if interval else 0)
    recorded.check_finished("over", "finished")


def test_pausing_and_resuming_are_reported() -> None:
    recorded = RecordedResponse()
    recorded.reply.begin(b"")
    recorded.request.producer.pauseProducing()
    recorded.request.producer.resumeProducing()
    recorded.request.producer.stopProducing()
    recorded.reply.finish()
    recorded.check_finished("paused", "resumed", "over", "finished")


@pytest.mark.parametrize("begun", [False, True])
def test_lost_connection_is_neither_written_to_nor_finished(begun: bool) -> None:
    recorded = RecordedResponse()
    recorded.reply.commit_after(2)
    if begun:
        recorded.reply.begin(b"")
    recorded.request.channel = recorded.request.producer = None
    recorded.reply.gone()
    recorded.reply.write(b"late")
    recorded.reply.finish()
    recorded.clock.advance(100)
    assert b"late" not in recorded.request.written
    assert "finished" not in recorded.events
    assert recorded.events[0] == "over"
    recorded.reply.abort()


def test_finish_on_a_lost_connection_is_reported() -> None:
    """`notifyFinish` has not fired yet, and its waiters must not wait forever."""
    recorded = RecordedResponse()
    recorded.reply.begin(b"")
    recorded.request.channel = recorded.request.producer = None
    recorded.reply.finish()
    recorded.check_finished("over", "finished")


def test_second_finish_does_nothing() -> None:
    recorded = RecordedResponse()
    recorded.reply.begin(b"")
    recorded.reply.finish()
    recorded.reply.finish()
    assert recorded.events.count("finished") == 1


def test_client_that_reads_nothing_is_aborted_after_peer_timeout() -> None:
    """A transport that cannot abort is left alone."""
    connection = StalledConnection(Clock())
    recorded = RecordedResponse(connection, peer_timeout=8, keepalive_interval=0)
    recorded.reply.begin(b"x")
    recorded.clock.pump([1] * 7)
    assert connection.aborted == 0
    recorded.clock.pump([1] * 4)
    assert connection.aborted == 1
    recorded = RecordedResponse(object())
    recorded.reply.abort()
