"""
The processes of an older server that may be lent to the same callers, and who
listens to them.

Knows who is to be told what; must not know how a process is had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mcpbridge.guard import guarded
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.subscriptions import (
    Change,
    Filter,
    acknowledged_line,
    all_changes,
    complete_line,
    notification_line,
)
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import DISCONNECTED, ENOUGH, Exchange
from mcpbridge.stateless.exclusive_worker import ExclusiveWorker

#: Of how many clients it is remembered what the server answers to `server/discover`.
DISCOVERED_KEPT = 64


class GroupKey(NamedTuple):
    """
    Which requests may be served by the same processes.

    `scope` is what they must have in common beside identity and capabilities:
    None for nothing (`reuse: identity`), their `ClientConnection`, or an object
    of one request's own, which no other request has.  It is the digest of a
    `clientInfo` for processes that have been initialized in these words and
    have served nobody: any request that says the same may have one.
    """

    identity: str
    capabilities: bytes
    scope: object = None

    def untouched(self, client_info: msgspec.Raw | None) -> GroupKey:
        """
        The kind of the processes that have been initialized for a client that
        says this of itself, and have served nobody.
        """
        if self.scope is None:
            return self
        # A digest: a client may say of itself as much as a message may hold.
        info = b"" if client_info is None else bytes(client_info)
        return self._replace(scope=blake2b(info, digest_size=16).digest())


class DiscoverResults:
    """
    What the server answers to `server/discover`, by what it was told of the
    client: it may depend on that, and may repeat it.
    """

    def __init__(self) -> None:
        self._known: dict[GroupKey, bytes] = {}

    def find(self, kind: GroupKey, client_info: msgspec.Raw | None) -> bytes | None:
        """The result, where it is known."""
        return self._known.get(kind.untouched(client_info))

    def add(self, kind: GroupKey, client_info: msgspec.Raw | None, result: bytes) -> None:
        """Keep this result; beyond `DISCOVERED_KEPT` the oldest is forgotten."""
        self._known[kind.untouched(client_info)] = result
        if len(self._known) > DISCOVERED_KEPT:
            del self._known[next(iter(self._known))]


class ExclusiveGroup:
    """The processes of one kind, and who listens to them."""

    log = Logger()

    def __init__(self, kind: GroupKey) -> None:
        self.kind = kind
        self.processes: list[ExclusiveWorker] = []
        self.free: list[ExclusiveWorker] = []
        self.listens: dict[Exchange, Filter] = {}
        #: A request of this kind, with which a process can be opened.
        self.example: ModernRequest | None = None
        #: Whether there was nothing to listen to for a while.
        self.missed = False
        #: When there is to be a process again to listen to.
        self.again: IDelayedCall | None = None
        # How many listen to each resource.
        self._resources: Counter[str] = Counter()

    @property
    def may_keep(self) -> bool:
        """Whether another request of this kind may come, for which a process is kept."""
        scope = self.kind.scope
        if isinstance(scope, ClientConnection):
            return not scope.lost
        return scope is None or isinstance(scope, bytes)

    @property
    def why_over(self) -> str:
        """Why its processes end that nobody may have after this."""
        return DISCONNECTED if isinstance(self.kind.scope, ClientConnection) else ENOUGH

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be missed of it."""
        return not (self.processes or self.listens or self.again)

    @property
    def unheard(self) -> bool:
        """Whether there is somebody who listens, and nothing to listen to."""
        return bool(self.listens) and not self.processes

    def needs(self, process: ExclusiveWorker) -> bool:
        """Whether it is the only one that somebody listens to."""
        return bool(self.listens) and self.processes == [process]

    def opened(self, process: ExclusiveWorker, example: ModernRequest) -> None:
        """A process has shaken hands: it is to tell what is listened for."""
        # Without what it asks for, which may be large.
        info = example.client_info
        self.example = msgspec.structs.replace(
            example, outer={}, params={}, meta={}, client_info=info and info.copy()
        )
        for uri in list(self._resources):
            process.subscribe(uri)
        if self.missed:
            self.missed = False
            for exchange, promised in list(self.listens.items()):
                self._deliver(exchange, *all_changes(promised))

    def listen(self, exchange: Exchange, promised: Filter) -> None:
        """From now on it is told what it was promised."""
        self.listens[exchange] = promised
        for uri in promised.resource_subscriptions:
            self._resources[uri] += 1
            if self._resources[uri] == 1:
                for each in self._initialized():
                    each.subscribe(uri)
        exchange.deliver([acknowledged_line(exchange.request.id, promised)], False)

    def unlisten(self, exchange: Exchange) -> None:
        """Its client has gone."""
        promised = self.listens.pop(exchange, None)
        for uri in () if promised is None else promised.resource_subscriptions:
            self._resources[uri] -= 1
            if not self._resources[uri]:
                del self._resources[uri]
                for each in self._initialized():
                    each.unsubscribe(uri)
        if not self.listens:
            self.no_again()

    def tell(self, change: Change) -> None:
        """To those who listen for it."""
        for exchange, promised in list(self.listens.items()):
            if promised.wants(change):
                self._deliver(exchange, change)

    def _deliver(self, exchange: Exchange, *changes: Change) -> None:
        lines = [notification_line(exchange.request.id, each) for each in changes]
        guarded(self.log, "a response", exchange.deliver, lines, False)

    def end_listens(self) -> None:
        """Who listens is told that this is the end, and may listen anew."""
        self.no_again()
        for exchange in list(self.listens):
            self.unlisten(exchange)
            line = complete_line(exchange.request.id)
            guarded(self.log, "a response", exchange.deliver, [line], True)

    def no_again(self) -> None:
        """No process is needed."""
        again, self.again = self.again, None
        if again is not None and again.active():
            again.cancel()

    def _initialized(self) -> list[ExclusiveWorker]:
        return [each for each in self.processes if each.conversation.initialized is not None]


class GroupSubscriber:
    """What stands for all processes of a group, for one who listens: a `Worker`."""

    def __init__(self, group: ExclusiveGroup, ended: Callable[[ExclusiveGroup], None]) -> None:
        self._group = group
        self._ended = ended

    def cancel(self, exchange: Exchange) -> None:
        """The client has gone."""
        self._group.unlisten(exchange)
        self._ended(self._group)

    def pause(self, exchange: Exchange) -> None:
        """Others need not wait for one that does not keep up: its response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Nothing was paused."""
