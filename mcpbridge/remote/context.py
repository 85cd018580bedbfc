"""
What the parts of one session at a remote server share.

Knows settings, time and what is reported to the session above; must not know how messages
travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers

from mcpbridge.config.oauth import Origin
from mcpbridge.config.settings import ServerSettings
from mcpbridge.jsonrpc.malformed_output import Lost
from mcpbridge.mcp.header_validation import MAX_TOOLS, Annotations
from mcpbridge.remote.bodies import BodyReader, TextReader
from mcpbridge.remote.http_client import HttpClient
from mcpbridge.remote.silence import Silence
from mcpbridge.response_budget import ResponseBudget

#: What every answer may be, as a client must accept both.
ACCEPT = "application/json, text/event-stream"
EVENTS = "text/event-stream"
JSON = "application/json"


@dataclass
class RemoteServer:
    """
    One remote server, as far as its sessions share what they know of it.

    `target` is the path of its URL with the query, and `shown` the URL for texts.
    """

    settings: ServerSettings
    origin: Origin
    target: str
    shown: str
    #: `streamable-http` or `sse`; `auto` if it is not known which.
    transport: str
    #: Whether it was a server of 2026-07-28 when it was last asked.
    is_modern: bool = False
    #: The headers that tools repeat arguments in, by the names of the tools.
    annotations: dict[str, Annotations] = field(default_factory=dict)

    def learn(self, annotations: dict[str, Annotations]) -> None:
        """Keep what a list of tools says; it takes the place of what was known of them."""
        self.annotations.update(annotations)
        while len(self.annotations) > MAX_TOOLS:
            del self.annotations[next(iter(self.annotations))]


class Reports(Protocol):
    """Where a session at a remote server reports what comes of it."""

    def messages_received(self, lines: list[bytes]) -> None:
        """Take messages of the server."""

    def messages_made(self, lines: list[bytes]) -> None:
        """Take messages of the bridge in the server's place, in the next iteration."""

    def message_lost(self, lost: Lost) -> None:
        """Note a message of the server that cannot pass."""

    def misbehaved(self, fault: str, what: str, line: bytes = b"") -> None:
        """Log a mistake of the server."""

    def died(self, what: str, status: str = "") -> None:
        """End the session; `what` stands behind "the remote server URL", `status` is short."""

    def unreachable(self, why: str) -> None:
        """End the session, for this reason: there is no connection to the server."""


class Bodies:
    """All bodies that a session reads, which are paused together: a `Reading`."""

    def __init__(self) -> None:
        self._bodies: set[BodyReader] = set()
        self._paused = False

    @property
    def is_paused(self) -> bool:
        """Whether no body is to be read now."""
        return self._paused

    @property
    def is_any_held(self) -> bool:
        """Whether any body is not read now."""
        return self._paused or any(each.is_held for each in self._bodies)

    def begun(self, body: BodyReader) -> None:
        """Note that a body is read, and pause it if the session is paused."""
        self._bodies.add(body)
        if self._paused:
            body.pause()

    def ended(self, body: BodyReader) -> None:
        """Note that a body has come to its end."""
        self._bodies.discard(body)

    def pause(self) -> None:
        """Read nothing."""
        self._paused = True
        for each in list(self._bodies):
            each.pause()

    def resume(self) -> None:
        """Read everything again."""
        self._paused = False
        for each in list(self._bodies):
            each.resume()


@dataclass
class Context:
    """All that the parts of one session need."""

    server: RemoteServer
    client: HttpClient
    clock: IReactorTime
    reports: Reports
    bodies: Bodies
    silence: Silence
    budget: ResponseBudget | None

    @property
    def limit(self) -> int:
        """The size of the largest message."""
        return self.server.settings.max_message_bytes


def content_type(response: Any) -> str:
    """Return the media type of a response, in lower case and without parameters."""
    return header_of(response, b"Content-Type").partition(";")[0].strip().lower()


def header_of(response: Any, name: bytes) -> str:
    """Return the first header of this name, of any bytes; empty if there is none."""
    headers: Headers = response.headers
    return headers.getRawHeaders(name, [b""])[0].decode("latin-1")


def read_text(response: Any, context: Context, then: Callable[[bytes], None]) -> TextReader:
    """Read a body that explains an error, or that nobody wants; `then` is called with it."""
    reader = TextReader(context.bodies, lambda _: then(reader.body), lambda: None, context.clock)
    reader.read(response)
    return reader
