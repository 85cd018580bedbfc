"""
A client of HTTP+SSE that runs in the reactor of the test, based on treq.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent


class EventReader(Protocol):
    """Parses the events of a response; `next_event` returns them in order."""

    transport: Any

    def __init__(self) -> None:
        self._text = b""
        self._events: deque[tuple[str, str]] = deque()
        self._waiting: deque[Deferred[tuple[str, str]]] = deque()
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Parse more of the body."""
        self._text += data
        *events, self._text = self._text.split(b"\n\n")
        for event in events:
            fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
            pair = (fields["event"], fields["data"])
            if self._waiting:
                self._waiting.popleft().callback(pair)
            else:
                self._events.append(pair)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        """Report the end of the body."""
        self.ended.callback(None)

    def next_event(self) -> Deferred[tuple[str, str]]:
        """Return the next event as (name, data)."""
        event: Deferred[tuple[str, str]] = Deferred()
        if self._events:
            event.callback(self._events.popleft())
        else:
            self._waiting.append(event)
        return event


class SseClient:
    """A client with one session."""

    def __init__(self, reactor: Any, origin: str) -> None:
        self._reactor = reactor
        self._origin = origin
        self._agent = Agent(reactor)
        self.events = EventReader()
        self.response: Any = None

    async def open(self, path: str = "/sse") -> Any:
        """Send the GET; if it opens a stream, read the endpoint event and the first ping."""
        response = await self._agent.request(b"GET", f"{self._origin}{path}".encode())
        self.response = response
        if response.code == 200:
            response.deliverBody(self.events)
            name, self.endpoint = await self.events.next_event()
            assert name == "endpoint"
            await self.events.next_event()
        return response

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Post a message; return the status and the body of the response."""
        response = await treq.post(
            f"{self._origin}{self.endpoint}", data=body, agent=self._agent, persistent=False
        )
        return response.code, await treq.content(response)

    async def read_message(self) -> str:
        """Read the next message."""
        name, data = await self.events.next_event()
        assert name == "message"
        return data

    async def close(self) -> None:
        """Close the connection of the stream."""
        if self.response is not None and self.response.code == 200:
            self.events.transport.loseConnection()
            await self.events.ended
