"""
Extensions as somebody else would write them: loaded by dotted name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import MessageRefused
from mcpbridge.interfaces import (
    IBackend,
    IBackendLauncher,
    IMessageFilter,
    IPermit,
    ISessionLimiter,
    ISessionObserver,
)


@implementer(IBackend)
class Parrot:
    """A backend in the bridge's own process: answers each request with its parameters."""

    exit_status: str | None = None

    def __init__(self, receiver: Any) -> None:
        self._receiver = receiver

    def send(self, line: bytes) -> None:
        from twisted.internet import reactor

        later: Any = reactor
        later.callLater(0, self._hear, msgspec.json.decode(line))

    def _hear(self, message: Any) -> None:
        if message.get("method") == "leave":
            self.exit_status = "left"
            self._receiver.input_closed("the parrot left")
            self._receiver.output_closed("the parrot left")
        elif "id" in message:
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": message.get("params")}
            self._receiver.messages_received([msgspec.json.encode(answer)])

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def stop(self) -> Deferred[None]:
        self.exit_status = self.exit_status or "stopped"
        return succeed(None)


@implementer(IBackendLauncher)
class ParrotLauncher:
    """Starts parrots."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings

    def launch(self, receiver: Any, label: str) -> Deferred[Parrot]:
        return succeed(Parrot(receiver))

    def check(self) -> str | None:
        return None


@implementer(IPermit)
class Place:
    """One place of `OnePlace`."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back

    def release(self) -> None:
        self._give_back()


@implementer(ISessionLimiter)
class OnePlace:
    """One session, whatever `max_sessions` says."""

    def __init__(self, settings: ServerSettings) -> None:
        self.free = True

    def acquire(self) -> Place | None:
        if not self.free:
            return None
        self.free = False
        return Place(lambda: setattr(self, "free", True))


@implementer(ISessionObserver)
class Notebook:
    """Writes down what it sees, for `Notebook.pages`."""

    pages: list[tuple[Any, ...]] = []  # noqa: RUF012 - the test reads it by its class

    def __init__(self, settings: ServerSettings) -> None:
        self.pages.append(("made", settings.options.get("title")))

    def session_opened(self, session: Any) -> None:
        self.pages.append(("opened", session.server))

    def message_passed(self, session: Any, from_client: bool, line: bytes) -> None:
        self.pages.append(("in" if from_client else "out", line))

    def session_closed(self, session: Any, reason: str) -> None:
        self.pages.append(("closed", reason))


@implementer(IMessageFilter)
class Censor:
    """Refuses what is secret, and stars out what is rude."""

    def __init__(self, settings: ServerSettings) -> None:
        pass

    def from_client(self, session: Any, line: bytes) -> bytes:
        if b"secret" in line:
            raise MessageRefused("that is secret")
        if b"trouble" in line:
            raise RuntimeError("a defect of the filter")
        return line

    def from_backend(self, session: Any, line: bytes) -> bytes:
        return line.replace(b"darn", b"****")


class NotALauncher:
    """Provides nothing."""

    def __init__(self, settings: ServerSettings) -> None:
        pass


def breaks(settings: ServerSettings) -> None:
    """A factory that raises."""
    raise RuntimeError("no luck today")
