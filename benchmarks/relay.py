"""
The floor: a bare relay on Twisted, which does only what no bridge can avoid.

`python relay.py [--direct] PORT COMMAND [ARG ...]` serves `/sse` and `/message` like HTTP+SSE and
`/mcp` like Streamable HTTP, both with one process for each session, and `/mcp` like 2026-07-28 with
one process for all.  It finds the end of a request, writes the body to the process, and writes to
the client what the process writes.

With `--direct` it calls `send` and `write` itself where nothing is waiting, instead of Twisted in
the next turn of the reactor.  No public name of Twisted does that.

Only for measuring: it parses no JSON, so the process must answer in the order of the requests; it
checks nothing, bounds nothing, and waits for no slow reader.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet import protocol

HEAD_END = b"\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n"
    b"event: endpoint\r\ndata: /message?sessionId=%d\r\n\r\n"
)
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
DELETED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
NAMED = b"mcp-session-id: %d\r\n"
#: Where the method of a notification begins, in the bodies of all clients.
NOTIFICATION = b'"method":"notifications/'
BEGINNING = 48

numbers = count(1)
sessions: dict[int, Session] = {}


class DirectWriter:
    """Writes at once what the socket or pipe takes; the transport buffers the rest."""

    def __init__(self, transport: Any, descriptor: int) -> None:
        self.transport = transport
        self.descriptor = descriptor
        self.empty = True

    def write(self, data: bytes) -> None:
        """Write, behind what is buffered."""
        sent = 0
        if self.empty:
            try:
                sent = os.write(self.descriptor, data)
            except BlockingIOError:
                pass
            except OSError:
                return  # the reactor notices it when it reads
            if sent == len(data):
                return
            self.transport.registerProducer(self, False)
            self.empty = False
        self.transport.write(data[sent:])

    def resumeProducing(self) -> None:
        """Nothing is buffered any more; also called when this is registered."""
        if not self.empty:
            self.empty = True
            self.transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The connection is lost."""


class Session(protocol.ProcessProtocol):
    """A process, and who waits for what it writes."""

    transport: Any

    def __init__(self, number: int) -> None:
        self.number = number
        self.stream: Callable[[bytes], None] | None = None
        self.waiting: deque[Callable[[bytes], None]] = deque()
        self.head = b""
        self.rest: list[bytes] = []

    def connectionMade(self) -> None:
        """Choose how to write."""
        self.write = self.transport.write
        if direct:
            stdin = self.transport.pipes[0]
            self.write = DirectWriter(stdin, stdin.fileno()).write

    def outReceived(self, data: bytes) -> None:
        """Pass on whole lines."""
        rest = self.rest
        end = data.rfind(b"\n")
        if end < 0:
            rest.append(data)
            return
        whole = data[:end]
        if rest:
            rest.append(whole)
            whole = b"".join(rest)
            rest.clear()
        if end + 1 < len(data):
            rest.append(data[end + 1 :])
        lines = whole.split(b"\n")
        if self.stream is not None:
            events = b"\r\n\r\nevent: message\r\ndata: ".join(lines)
            self.stream(b"event: message\r\ndata: %b\r\n\r\n" % events)
            return
        for line in lines:
            self.waiting.popleft()(ANSWER % (len(line), self.head, line))
            self.head = b""

    def processEnded(self, reason: Any) -> None:
        """Forget it."""
        sessions.pop(self.number, None)


class Client(protocol.Protocol):
    """A connection."""

    transport: Any

    def __init__(self) -> None:
        self.buffer = b""
        self.pieces: list[bytes] = []
        self.missing = 0
        self.session: Session | None = None

    def connectionMade(self) -> None:
        """Choose how to write; small answers must not wait for the client's next packet."""
        self.transport.setTcpNoDelay(True)
        self.write = self.transport.write
        if direct:
            self.write = DirectWriter(self.transport, self.transport.fileno()).write

    def dataReceived(self, data: bytes) -> None:
        """Collect a whole request."""
        if self.missing > 0:
            self.pieces.append(data)
            self.missing -= len(data)
            if self.missing > 0:
                return
            data = b"".join(self.pieces)
            self.pieces.clear()
        while data:
            if self.buffer:
                data, self.buffer = self.buffer + data, b""
            end = data.find(HEAD_END)
            if end < 0:
                self.buffer = data
                return
            head = data[:end]
            # Content-Length in any client's letters; no other name ends like that.
            at = head.find(b"ength: ")
            length = int(head[at + 7 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            whole = end + 4 + length
            if len(data) < whole:
                self.pieces.append(data)
                self.missing = whole - len(data)
                return
            self.handle(head, data[end + 4 : whole])
            data = data[whole:]

    def handle(self, head: bytes, body: bytes) -> None:
        """Serve a request by its first line."""
        if head.startswith(b"POST /message?sessionId="):
            session = sessions.get(int(head[24 : head.index(b" ", 24)]))
            if session is None:
                self.write(GONE)
                return
            session.write(body + b"\n")
            self.write(ACCEPTED)
        elif head.startswith(b"POST /mcp"):
            self.handle_mcp(head, body)
        elif head.startswith(b"GET /sse"):
            self.session = session = start()
            session.stream = self.write
            self.write(STREAM_HEAD % session.number)
        elif head.startswith(b"DELETE /mcp"):
            at = head.index(b"mcp-session-id: ") + 16
            session = sessions.pop(int(head[at:].split(b"\r\n", 1)[0]))
            session.transport.closeStdin()
            self.write(DELETED)
        else:
            self.write(GONE)

    def handle_mcp(self, head: bytes, body: bytes) -> None:
        """Serve a POST of any revision."""
        at = head.find(b"mcp-session-id: ")
        if at >= 0:
            session = sessions.get(int(head[at + 16 :].split(b"\r\n", 1)[0]))
        elif b": 2026-07-28" in head:
            session = sessions.get(0) or start(0)
        else:
            session = start()
            session.head = NAMED % session.number
            self.session = session
        if session is None:
            self.write(GONE)
            return
        session.write(body + b"\n")
        if NOTIFICATION in body[:BEGINNING]:
            self.write(ACCEPTED)
        else:
            session.waiting.append(self.write)

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        """End the process of the session that this connection opened."""
        if self.session is not None and sessions.pop(self.session.number, None) is not None:
            self.session.transport.closeStdin()


def start(number: int | None = None) -> Session:
    """Start a process for a session."""
    from twisted.internet import reactor

    session = Session(next(numbers) if number is None else number)
    sessions[session.number] = session
    reactor.spawnProcess(session, command[0], command, env=None)
    return session


def main() -> None:
    """Serve until a signal."""
    from twisted.internet import reactor

    factory = protocol.ServerFactory()
    factory.protocol = Client
    factory.noisy = False
    reactor.listenTCP(int(port), factory, backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    direct = sys.argv[1] == "--direct"
    port, *command = sys.argv[2:] if direct else sys.argv[1:]
    main()
