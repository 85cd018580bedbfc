"""One response: JSON or events, kept alive, watched, and over once."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mcpbridge.config.settings import ServerSettings
from mcpbridge.web.response import Response
from tests.unit.web.test_stream_response import COMMENT, FakeRequest, FakeTransport, Stalled


class Told:
    """What a response tells its subclass, in order."""

    def __init__(self, transport: Any = None, **settings: Any) -> None:
        told = self
        self.clock = Clock()
        self.events: list[str] = []
        self.request = FakeRequest(transport or FakeTransport())

        class Telling(Response):
            def commit(self) -> None:
                told.events.append("begin")

            def client_paused(self) -> None:
                told.events.append("paused")

            def client_resumed(self) -> None:
                told.events.append("resumed")

            def ended(self) -> None:
                told.events.append("over")

        settings_ = ServerSettings(command="x", **settings)
        self.reply = Telling(self.request, settings_, self.clock)
        self.reply.finished.addCallback(lambda _: self.events.append("finished"))

    def check_over(self, *events: str) -> None:
        """It has told that much, and nothing is left to happen."""
        assert self.events == [*events]
        assert self.clock.getDelayedCalls() == []
        assert self.request.producer is None
        assert self.request.channel is None or not self.request.channel.streaming


def test_json() -> None:
    told = Told()
    told.reply.write_json(b"{}")
    assert (told.request.code, told.request.text) == (200, b"{}")
    assert told.request.headers == {b"Content-Type": b"application/json", b"Content-Length": b"2"}
    told.check_over("over", "finished")


def test_json_with_a_status() -> None:
    told = Told()
    told.reply.write_json(b"{}", 404)
    assert told.request.code == 404


def test_events() -> None:
    """The head is what no proxy stores or holds back."""
    told = Told()
    told.reply.begin(b"first")
    assert told.reply.streaming
    assert told.request.headers == {
        b"Content-Type": b"text/event-stream",
        b"Cache-Control": b"no-cache",
        b"X-Accel-Buffering": b"no",
    }
    assert verifyObject(IPushProducer, told.request.producer)
    assert told.request.channel is not None
    assert told.request.channel.streaming
    told.reply.write(b"second")
    told.reply.finish()
    assert told.request.written == [b"first", b"second"]
    told.check_over("over", "finished")


def test_commit_after() -> None:
    """It is begun when the time has come, unless it was begun or is over before."""
    for before in (lambda told: told.reply.begin(b""), lambda told: told.reply.finish()):
        told = Told(keepalive_interval=0)
        told.reply.commit_after(2)
        before(told)
        told.clock.advance(2)
        assert "begin" not in told.events
    told = Told()
    told.reply.commit_after(2)
    told.clock.advance(2)
    told.check_over("begin")


@pytest.mark.parametrize("interval", [0, 5])
def test_keepalive(interval: float) -> None:
    """Comments, as long as the stream is open; 0: none."""
    told = Told(keepalive_interval=interval)
    told.reply.begin(b"")
    told.clock.pump([1] * 16)
    told.reply.finish()
    told.clock.pump([5] * 4)
    assert told.request.text == COMMENT * (3 if interval else 0)
    told.check_over("over", "finished")


def test_a_client_that_does_not_keep_up() -> None:
    told = Told()
    told.reply.begin(b"")
    told.request.producer.pauseProducing()
    told.request.producer.resumeProducing()
    told.request.producer.stopProducing()
    told.reply.finish()
    told.check_over("paused", "resumed", "over", "finished")


@pytest.mark.parametrize("begun", [False, True])
def test_a_lost_connection(begun: bool) -> None:
    """Nothing is written any more, nor is it finished: there is nothing to finish."""
    told = Told()
    told.reply.commit_after(2)
    if begun:
        told.reply.begin(b"")
    told.request.channel = told.request.producer = None
    told.reply.gone()
    told.reply.write(b"late")
    told.reply.finish()
    told.clock.advance(100)
    assert b"late" not in told.request.written
    assert "finished" not in told.events
    assert told.events[0] == "over"
    told.reply.abort()


def test_finished_where_the_connection_is_lost_meanwhile() -> None:
    """`notifyFinish` has not told yet; whoever waits must not wait for ever."""
    told = Told()
    told.reply.begin(b"")
    told.request.channel = told.request.producer = None
    told.reply.finish()
    told.check_over("over", "finished")


def test_finished_once() -> None:
    told = Told()
    told.reply.begin(b"")
    told.reply.finish()
    told.reply.finish()
    assert told.events.count("finished") == 1


def test_a_client_that_reads_nothing_is_aborted() -> None:
    """After `peer_timeout` with data waiting; a transport that cannot abort is left alone."""
    connection = Stalled(Clock())
    told = Told(connection, peer_timeout=8, keepalive_interval=0)
    told.reply.begin(b"x")
    told.clock.pump([1] * 7)
    assert connection.aborted == 0
    told.clock.pump([1] * 4)
    assert connection.aborted == 1
    told = Told(object())
    told.reply.abort()
