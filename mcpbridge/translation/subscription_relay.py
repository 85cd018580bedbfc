"""
One `subscriptions/listen` that stands for everything a legacy client is
subscribed to (2026-07-28, basic/patterns/subscriptions).

Knows which notifications are wanted, which listen request brings them and when
to send it again; must not know how a message is written, nor the client's ids:
whoever asked for a subscription is a tag here.  A step takes as long as the
session has subscriptions, because each listen names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Generic, NamedTuple, TypeVar

from mcpbridge.errors import INTERNAL_ERROR, INVALID_PARAMS, SERVER_ERROR
from mcpbridge.mcp.modern_request import LISTEN

#: How many resources a session may subscribe to.
MAX_URIS = 1024
#: The longest URI of one of them, in characters.
MAX_URI_LENGTH = 2048
#: How long a listen may take to be acknowledged, in seconds.
ACKNOWLEDGED_SECONDS = 30.0
#: The pause before the first renewal of a listen that ended, in seconds; it grows from there.
FIRST_PAUSE = 1.0
#: The longest such pause.  A listen that lived that long starts the count again.
LONGEST_PAUSE = 60.0
#: After how many short-lived listens in a row it is left to the client to subscribe again.
MAX_RENEWALS = 8

Tag = TypeVar("Tag")


class SubscriptionRefused(NamedTuple):
    """The JSON-RPC error with which a subscription is refused."""

    code: int
    text: str


class RelayStep(NamedTuple, Generic[Tag]):
    """Lines for the backend, and the answers to subscriptions: None for success."""

    to_backend: list[bytes]
    answers: list[tuple[Tag, SubscriptionRefused | None]]


class _Listen(Generic[Tag]):
    """One listen, from its request to its end."""

    __slots__ = ("asked", "number", "since", "uris", "waiters")

    def __init__(
        self,
        number: int,
        asked: Mapping[str, object],
        uris: Collection[str],
        waiters: list[tuple[Tag, str]],
        now: float,
    ) -> None:
        self.number = number
        self.asked = asked
        self.uris = uris
        self.waiters = waiters
        self.since = now


class SubscriptionRelay(Generic[Tag]):
    """
    The subscriptions of a session.

    `new_request` returns the number and the line of a request to the backend,
    `cancel` the line that cancels a number, and `pause` how long to wait, in
    seconds, after so many listens in a row that did not last.  A changed set is asked for with
    a new listen.  When that is acknowledged it becomes the current one, and
    the one before it is cancelled.  Only the current one brings
    notifications, so none comes twice and none is lost in between.
    """

    def __init__(
        self,
        new_request: Callable[[str, Mapping[str, object]], tuple[int, bytes]],
        cancel: Callable[[int], bytes],
        pause: Callable[[int], float],
    ) -> None:
        self._new_request = new_request
        self._cancel = cancel
        self._pause = pause
        self._list_filters: tuple[str, ...] = ()
        self._uris: dict[str, None] = {}
        self._current: _Listen[Tag] | None = None
        self._opening: _Listen[Tag] | None = None
        # Those whose subscription needs the listen after the one that is opening.
        self._waiting: list[tuple[Tag, str]] = []
        self._stale = False
        self._renew_at: float | None = None
        self._failures = 0

    @property
    def due(self) -> float | None:
        """When `tick` has something to do; None: not before something happens."""
        if self._opening is not None:
            return self._opening.since + ACKNOWLEDGED_SECONDS
        return self._renew_at

    def snapshot(self, now: float) -> Callable[[], None]:
        """Return what undoes the next step, for when its line cannot be sent."""
        uris, opening, waiting = dict(self._uris), self._opening, list(self._waiting)
        current, stale = self._current, self._stale

        def restore() -> None:
            self._uris, self._opening, self._waiting = uris, opening, waiting
            self._current, self._stale = current, stale
            self._renew_later(now)

        return restore

    def set_list_filters(self, names: Collection[str]) -> None:
        """Ask for these notifications of changed lists, from the next `listen` on."""
        self._list_filters = tuple(names)

    def listen(self, now: float) -> list[bytes]:
        """Return the lines that ask for the subscriptions of now; while a listen opens, none."""
        self._renew_at = None
        if self._opening is not None:
            self._stale = True
            return []
        self._stale = False
        asked = self._filter()
        if not asked:
            current, self._current = self._current, None
            return [] if current is None else [self._cancel(current.number)]
        number, line = self._new_request(LISTEN, {"notifications": asked})
        self._opening = _Listen(number, asked, tuple(self._uris), self._waiting, now)
        self._waiting = []
        return [line]

    def subscribe(self, tag: Tag, uri: str, now: float) -> RelayStep[Tag]:
        """Subscribe to a resource.  The answer comes when a listen for it is acknowledged."""
        if len(uri) > MAX_URI_LENGTH:
            text = f"the URI is longer than {MAX_URI_LENGTH} characters"
            return RelayStep([], [(tag, SubscriptionRefused(INVALID_PARAMS, text))])
        if uri in self._uris:
            if self._current is not None and uri in self._current.uris:
                return RelayStep([], [(tag, None)])
            if self._opening is not None and uri in self._opening.uris:
                self._opening.waiters.append((tag, uri))
                return RelayStep([], [])
        elif len(self._uris) >= MAX_URIS:
            text = f"a session may be subscribed to no more than {MAX_URIS} resources"
            return RelayStep([], [(tag, SubscriptionRefused(SERVER_ERROR, text))])
        self._uris[uri] = None
        self._waiting.append((tag, uri))
        return RelayStep(self.listen(now), [])

    def unsubscribe(self, uri: str, now: float) -> RelayStep[Tag]:
        """End the subscription to a resource; one that had no listen yet is answered."""
        if uri not in self._uris:
            return RelayStep([], [])
        del self._uris[uri]
        answers: list[tuple[Tag, SubscriptionRefused | None]] = [
            (tag, None) for tag, waits in self._waiting if waits == uri
        ]
        self._waiting = [each for each in self._waiting if each[1] != uri]
        return RelayStep(self.listen(now), answers)

    def is_current(self, number: object) -> bool:
        """Tell whether the notifications of a listen are for the client."""
        return self._current is not None and self._current.number == number

    def acknowledged(self, number: object, uris: Collection[str], now: float) -> RelayStep[Tag]:
        """Take the acknowledgement of a listen, which grants these resources."""
        opened = self._opening
        if opened is None or opened.number != number:
            return RelayStep([], [])
        before, self._current, self._opening = self._current, opened, None
        answers: list[tuple[Tag, SubscriptionRefused | None]] = []
        for tag, uri in opened.waiters:
            granted = uri in uris
            if not granted:
                self._uris.pop(uri, None)
            answers.append((tag, None if granted else _NOT_GRANTED))
        opened.waiters = []
        opened.uris = frozenset(uris)
        lines = [] if before is None else [self._cancel(before.number)]
        if self._stale:
            lines += self.listen(now)
        else:
            opened.asked = self._filter()
        return RelayStep(lines, answers)

    def ended(self, number: object, why: str, now: float) -> RelayStep[Tag] | None:
        """Take the end of a listen; return None where that number is none's."""
        opening, current = self._opening, self._current
        if opening is not None and opening.number == number:
            self._opening = None
            problem = SubscriptionRefused(INTERNAL_ERROR, f"the server did not subscribe: {why}")
            for _, uri in opening.waiters:
                self._uris.pop(uri, None)
            lines = self.listen(now) if self._stale else []
            self._renew_later(now)
            return RelayStep(lines, [(tag, problem) for tag, _ in opening.waiters])
        if current is not None and current.number == number:
            self._current = None
            if now - current.since >= LONGEST_PAUSE:
                self._failures = 0
            self._renew_later(now)
            return RelayStep([], [])
        return None

    def tick(self, now: float) -> RelayStep[Tag]:
        """Give up a listen that is not acknowledged in time, or renew one."""
        opening = self._opening
        if opening is not None and now >= opening.since + ACKNOWLEDGED_SECONDS:
            step = self.ended(opening.number, "it does not answer", now)
            assert step is not None
            return RelayStep([self._cancel(opening.number), *step.to_backend], step.answers)
        if self._renew_at is not None and now >= self._renew_at:
            return RelayStep(self.listen(now), [])
        return RelayStep([], [])

    def _filter(self) -> dict[str, object]:
        wanted: dict[str, object] = dict.fromkeys(self._list_filters, True)
        if self._uris:
            wanted["resourceSubscriptions"] = list(self._uris)
        return wanted

    def _renew_later(self, now: float) -> None:
        """Renew the listen after a pause, where something is wanted that none brings."""
        asked = {} if self._current is None else self._current.asked
        if self._opening is not None or self._filter() == asked:
            return
        if self._failures < MAX_RENEWALS:
            self._renew_at = now + self._pause(self._failures)
            self._failures += 1


_NOT_GRANTED = SubscriptionRefused(
    INTERNAL_ERROR, "the server does not offer subscriptions to this resource"
)
