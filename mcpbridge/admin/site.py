"""
The connections of the admin listeners, with limits of their own.

They are few, so that nobody who can only connect takes the bridge's descriptors; and those of
clients cannot keep an operator out.  Knows connections; must not know what is served.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from mcpbridge.guard import guarded
from mcpbridge.timers import Timer

#: How many connections there may be.  Beyond that the oldest gives way of which no request was
#: admitted yet.
ADMIN_CONNECTIONS = 32
#: The largest body of a request, in bytes.  None is needed.
ADMIN_BODY_BYTES = 4096
#: How long a request may take to arrive, in seconds.
ADMIN_REQUEST_SECONDS = 15.0
#: How many more there may be on UNIX sockets, so that others cannot keep its user out.
ADMIN_RESERVED = 8
#: How long a client may take to read a response that is complete, in seconds.
ADMIN_READ_SECONDS = 30.0
#: How long connections may take to close when the bridge stops.
ADMIN_CLOSE_SECONDS = 1.0

_TOO_LARGE_BODY = b'{"error":"a request may have a body of %d bytes"}' % ADMIN_BODY_BYTES
_TOO_LARGE = (
    b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_TOO_LARGE_BODY), _TOO_LARGE_BODY)
)


class AdminRequest(Request):
    """A request with a small body."""

    channel: Any
    content: Any
    #: True once its body was refused.
    refused = False
    _size = 0

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is announced to be too large."""
        self.content = BytesIO()
        if length is not None and length > ADMIN_BODY_BYTES:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body, within the limit."""
        self._size += len(data)
        if self._size > ADMIN_BODY_BYTES:
            self._refuse()
        else:
            self.content.write(data)

    def _refuse(self) -> None:
        if not self.refused:
            self.refused = True
            self.channel.transport.write(_TOO_LARGE)
            self.channel.loseConnection()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Serve the request, unless it was refused."""
        if not self.refused:
            super().requestReceived(command, path, version)


class AdminChannel(HTTPChannel):
    """
    A connection for one request, which has to arrive in `ADMIN_REQUEST_SECONDS`, and whose
    response has to be read in `ADMIN_READ_SECONDS`.

    Twisted reads requests on while responses wait to be read, without a bound.
    """

    site: Any
    #: True once a request of it was admitted.
    admitted = False
    _arrival: Timer | None = None
    #: True once all of its request is there.
    _complete = False

    def connectionMade(self) -> None:
        """Begin to wait for a request, if there may be another connection."""
        super().connectionMade()
        self._arrival = Timer(self.site.clock)
        if self.site.connections.admit(self):
            self._arrival.start(ADMIN_REQUEST_SECONDS, self.abort)
        else:
            self.abort()

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Serve no second request."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False

    def requestDone(self, request: Any) -> None:
        """Wait until the response is read."""
        if self._arrival is not None:
            self._arrival.start(ADMIN_READ_SECONDS, self.abort)
        super().requestDone(request)

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take what belongs to the request, and nothing that comes after it."""
        if not self._complete:
            super().dataReceived(data)

    def allContentReceived(self) -> None:
        """Stop the wait: the request is complete."""
        self._complete = True
        if self._arrival is not None:
            self._arrival.stop()
        super().allContentReceived()

    def lineReceived(self, line: bytes) -> None:
        """Begin to wait for the rest of the request with its first line."""
        if self._arrival is not None and not self._arrival.is_running:
            self._arrival.start(ADMIN_REQUEST_SECONDS, self.abort)
        super().lineReceived(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Count the connection no more."""
        if self._arrival is not None:
            self._arrival.stop()
        self.site.connections.remove(self)
        super().connectionLost(reason)


class AdminConnections:
    """The connections of all admin listeners."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        #: As an ordered set, the oldest first.
        self._channels: dict[Any, None] = {}
        self._emptied: Deferred[None] | None = None
        self._timer = Timer(clock)

    def __len__(self) -> int:
        return len(self._channels)

    def admit(self, channel: Any) -> bool:
        """Count a connection; return False if there are too many, and none gives way."""
        most = ADMIN_CONNECTIONS + (ADMIN_RESERVED if channel.site.trusted else 0)
        if len(self._channels) >= most:
            oldest = next((each for each in self._channels if not each.admitted), None)
            if oldest is None:
                return False
            self.remove(oldest)
            guarded(self.log, "closing a connection", oldest.abort)
        self._channels[channel] = None
        return True

    def remove(self, channel: Any) -> None:
        """Count a connection no more."""
        self._channels.pop(channel, None)
        if not self._channels and self._emptied is not None:
            emptied, self._emptied = self._emptied, None
            self._timer.stop()
            emptied.callback(None)

    def close(self) -> Deferred[None]:
        """
        Close all connections once what was written is sent, and abort those that are left after
        `ADMIN_CLOSE_SECONDS`.
        """
        if not self._channels:
            return succeed(None)
        emptied = self._emptied = Deferred()
        self._timer.start(ADMIN_CLOSE_SECONDS, self._abort_all)
        for each in list(self._channels):
            guarded(self.log, "closing a connection", each.loseConnection)
        return emptied

    def _abort_all(self) -> None:
        for each in list(self._channels):
            guarded(self.log, "closing a connection", each.abort)
            self.remove(each)


class AdminSite(Site):
    """
    Serves a resource over HTTP/1.1.  `trusted` is True for a UNIX socket, where no token is
    needed.
    """

    noisy = False

    def __init__(
        self, resource: IResource, reactor: Any, connections: AdminConnections, *, trusted: bool
    ) -> None:
        super().__init__(
            resource,
            requestFactory=AdminRequest,
            timeout=None,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )
        # Not Twisted's generic one, which may become HTTP/2.
        self.protocol: Any = AdminChannel
        self.clock: IReactorTime = reactor
        self.connections = connections
        self.trusted = trusted

    def startFactory(self) -> None:
        """Start no clock for an access log: Twisted leaves it running if it cannot bind."""

    def stopFactory(self) -> None:
        """Do nothing: nothing was started."""

    def log(self, request: Any) -> None:
        """Log nothing: what operators do is logged by what does it."""

    def acceptableProtocols(self) -> list[bytes]:
        """Return HTTP/1.1 alone."""
        return [b"http/1.1"]
