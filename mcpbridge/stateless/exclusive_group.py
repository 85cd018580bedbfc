"""
The workers of a legacy server that may serve the same requests, and who has
subscribed to what their server tells.

Knows who is to get which notification; must not know how a worker is had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.guard import guarded
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.mcp.subscriptions import (
    Change,
    Filter,
    acknowledged_line,
    all_changes,
    change_line,
    complete_line,
)
from mcpbridge.processes.backend_session import NO_VARIABLES
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.exclusive_worker import ExclusiveWorker
from mcpbridge.stateless.worker import DISCONNECTED, SPENT
from mcpbridge.timers import Timer

#: For how many kinds of client the answer to `server/discover` is remembered.
DISCOVERED_KEPT = 64


class GroupKey(NamedTuple):
    """
    What requests must have in common to be served by the same workers.

    `scope` is what that is beside identity and capabilities: None for nothing
    (`reuse: identity`), their `ClientConnection`, or an object of one
    request's own, which no other request has.  For workers that have made the
    handshake and served nobody it is a digest of the `clientInfo` that the
    server was told: any request that says the same may have one.
    """

    identity: str
    capabilities: bytes
    scope: object = None

    def untouched(self, client_info: msgspec.Raw | None) -> GroupKey:
        """
        Return the key of the workers that have made the handshake for a
        client with this `clientInfo`, and have served nobody.
        """
        if self.scope is None:
            return self
        # A digest, since a clientInfo may be as large as a message.
        info = b"" if client_info is None else bytes(client_info)
        return self._replace(scope=blake2b(info, digest_size=16).digest())


class DiscoverResults:
    """
    Answers to `server/discover`, by what the server was told of the client:
    the answer may depend on that, and may repeat it.
    """

    def __init__(self) -> None:
        self._known: dict[GroupKey, bytes] = {}

    def find(self, key: GroupKey, client_info: msgspec.Raw | None) -> bytes | None:
        """Return the result for such a client, or None."""
        return self._known.get(key.untouched(client_info))

    def add(self, key: GroupKey, client_info: msgspec.Raw | None, result: bytes) -> None:
        """Keep a result; beyond `DISCOVERED_KEPT` the oldest is forgotten."""
        self._known[key.untouched(client_info)] = result
        if len(self._known) > DISCOVERED_KEPT:
            del self._known[next(iter(self._known))]


class ExclusiveGroup:
    """The workers with one key, and their subscribers."""

    log = Logger()

    def __init__(self, key: GroupKey, clock: IReactorTime) -> None:
        self.key = key
        self.workers: list[ExclusiveWorker] = []
        #: The free ones, as an ordered set; the last one to become free is used first.
        self.free: dict[ExclusiveWorker, None] = {}
        self.subscribers: dict[Exchange, Filter] = {}
        #: A request with this key, with which a worker can be opened.
        self.example: ModernRequest | None = None
        #: The variables of its processes (`env_from`), which are the same for all of one identity.
        self.environment: Mapping[str, str] = NO_VARIABLES
        #: Whether subscribers may have missed notifications for want of a worker.
        self.missed = False
        #: When a worker is opened for the subscribers, as there is none.
        self.reopening = Timer(clock)
        # How many have subscribed to each resource.
        self._resources: Counter[str] = Counter()

    @property
    def is_reusable(self) -> bool:
        """Whether another request with this key may come, for which a worker is kept."""
        scope = self.key.scope
        if isinstance(scope, ClientConnection):
            return not scope.lost
        return scope is None or isinstance(scope, bytes)

    @property
    def end_reason(self) -> str:
        """Why its workers' processes end when no other request may have them."""
        return DISCONNECTED if isinstance(self.key.scope, ClientConnection) else SPENT

    @property
    def is_empty(self) -> bool:
        """Whether it can be forgotten."""
        return not (self.workers or self.subscribers or self.reopening.is_running)

    @property
    def lacks_worker(self) -> bool:
        """Whether there are subscribers, and no worker whose server could tell them anything."""
        return bool(self.subscribers) and not self.workers

    def needs(self, worker: ExclusiveWorker) -> bool:
        """Return whether it is the only one that subscribers have."""
        return bool(self.subscribers) and self.workers == [worker]

    def opened(self, worker: ExclusiveWorker, example: ModernRequest) -> None:
        """A worker has made the handshake: subscribe to what subscribers wait for."""
        # Keep no arguments, which may be large.
        info = example.client_info
        self.example = msgspec.structs.replace(
            example, outer={}, params={}, meta={}, client_info=info and info.copy()
        )
        self.environment = worker.session.environment
        for uri in list(self._resources):
            worker.subscribe(uri)
        if self.missed:
            self.missed = False
            for exchange, promised in list(self.subscribers.items()):
                self._deliver(exchange, *all_changes(promised))

    def subscribe(self, exchange: Exchange, promised: Filter) -> None:
        """Acknowledge a subscription, and deliver what it was promised from now on."""
        self.subscribers[exchange] = promised
        for uri in promised.resource_subscriptions:
            self._resources[uri] += 1
            if self._resources[uri] == 1:
                for each in self._initialized():
                    each.subscribe(uri)
        exchange.deliver([acknowledged_line(exchange.request.id, promised)], False)

    def unsubscribe(self, exchange: Exchange) -> None:
        """End a subscription: its client has gone."""
        promised = self.subscribers.pop(exchange, None)
        for uri in () if promised is None else promised.resource_subscriptions:
            self._resources[uri] -= 1
            if not self._resources[uri]:
                del self._resources[uri]
                for each in self._initialized():
                    each.unsubscribe(uri)
        if not self.subscribers:
            self.reopening.stop()

    def notify(self, change: Change) -> None:
        """Deliver a notification to the subscribers that want it."""
        for exchange, promised in list(self.subscribers.items()):
            if promised.wants(change):
                self._deliver(exchange, change)

    def _deliver(self, exchange: Exchange, *changes: Change) -> None:
        lines = [change_line(exchange.request.id, each) for each in changes]
        guarded(self.log, "a response", exchange.deliver, lines, False)

    def end_subscriptions(self) -> None:
        """End all subscriptions from the server's side ("Graceful Closure")."""
        self.reopening.stop()
        for exchange in list(self.subscribers):
            self.unsubscribe(exchange)
            line = complete_line(exchange.request.id)
            guarded(self.log, "a response", exchange.deliver, [line], True)

    def _initialized(self) -> list[ExclusiveWorker]:
        return [each for each in self.workers if each.translator.initialized is not None]


class GroupSubscriber:
    """The `Worker` of a subscription: all workers of a group."""

    def __init__(self, group: ExclusiveGroup, left: Callable[[ExclusiveGroup], None]) -> None:
        self._group = group
        self._left = left

    def cancel(self, exchange: Exchange) -> None:
        """End the subscription: the client has gone."""
        self._group.unsubscribe(exchange)
        self._left(self._group)

    def pause(self, exchange: Exchange) -> None:
        """Do nothing: others must not wait for one client, whose response is bounded."""

    def resume(self, exchange: Exchange) -> None:
        """Do nothing: nothing was paused."""
