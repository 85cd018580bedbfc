"""
One `subscriptions/listen` that stands for all that a legacy client listens to
(2026-07-28, basic/patterns/subscriptions).

Knows which notifications are wanted, which listen brings them and when to
listen again; must not know how a message is written, nor the client's ids:
whoever asked for a subscription is a tag here.  A step is as long as the list
of the session's subscriptions, because each listen names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Generic, NamedTuple, TypeVar

from mcpbridge.errors import INTERNAL_ERROR, INVALID_PARAMS, SERVER_ERROR
from mcpbridge.mcp.modern_request import LISTEN

#: How many resources a session may be subscribed to.
MAX_URIS = 1024
#: How long the URI of one of them may be, in characters.
MAX_URI_LENGTH = 2048
#: How long a listen may take until it is acknowledged, in seconds.
ACKNOWLEDGED_SECONDS = 30.0
#: How long to wait until the bridge listens again, in seconds; doubled each time.
FIRST_PAUSE = 1.0
#: The longest such pause; a listen that has lived that long was a good one.
LONGEST_PAUSE = 60.0
#: After how many short-lived listens in a row it is left to the client to ask anew.
MAX_RELISTENS = 8

Tag = TypeVar("Tag")


class Problem(NamedTuple):
    """Why a subscription was refused, as a JSON-RPC error says it."""

    code: int
    text: str


class Heard(NamedTuple, Generic[Tag]):
    """Lines for the backend, and who is answered: None where it is granted."""

    to_backend: list[bytes]
    answers: list[tuple[Tag, Problem | None]]


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
    What a session listens to.

    `ask` gives a request to the backend a number and returns both; `cancel`
    makes the line that cancels a number.  A changed set is asked for with a
    new listen; when that is acknowledged it takes over, and the one before it
    is cancelled.  Only one brings notifications at a time: none comes twice.
    """

    def __init__(
        self,
        ask: Callable[[str, Mapping[str, object]], tuple[int, bytes]],
        cancel: Callable[[int], bytes],
    ) -> None:
        self._ask = ask
        self._cancel = cancel
        self._flags: tuple[str, ...] = ()
        self._uris: dict[str, None] = {}
        self._current: _Listen[Tag] | None = None
        self._opening: _Listen[Tag] | None = None
        # Those whose subscription is for the listen after the one that opens.
        self._next: list[tuple[Tag, str]] = []
        self._stale = False
        self._again: float | None = None
        self._failures = 0

    @property
    def due(self) -> float | None:
        """When `tick` has something to do; None: not before something happens."""
        if self._opening is not None:
            return self._opening.since + ACKNOWLEDGED_SECONDS
        return self._again

    def mark(self, now: float) -> Callable[[], None]:
        """Returns what undoes the next step, where the line of that could not be sent."""
        uris, opening, following = dict(self._uris), self._opening, list(self._next)
        current, stale = self._current, self._stale

        def restore() -> None:
            self._uris, self._opening, self._next = uris, opening, following
            self._current, self._stale = current, stale
            self._listen_later(now)

        return restore

    def want(self, flags: Collection[str]) -> None:
        """These notifications of changed lists, members of a filter, from the next `listen` on."""
        self._flags = tuple(flags)

    def listen(self, now: float) -> list[bytes]:
        """Ask for what is wanted now; while a listen opens, once that is done."""
        self._again = None
        if self._opening is not None:
            self._stale = True
            return []
        self._stale = False
        asked = self._wanted()
        if not asked:
            current, self._current = self._current, None
            return [] if current is None else [self._cancel(current.number)]
        number, line = self._ask(LISTEN, {"notifications": asked})
        self._opening = _Listen(number, asked, tuple(self._uris), self._next, now)
        self._next = []
        return [line]

    def subscribe(self, tag: Tag, uri: str, now: float) -> Heard[Tag]:
        """Want to know of changes of a resource; answered when a listen has it."""
        if len(uri) > MAX_URI_LENGTH:
            text = f"the URI is longer than {MAX_URI_LENGTH} characters"
            return Heard([], [(tag, Problem(INVALID_PARAMS, text))])
        if uri in self._uris:
            if self._current is not None and uri in self._current.uris:
                return Heard([], [(tag, None)])
            if self._opening is not None and uri in self._opening.uris:
                self._opening.waiters.append((tag, uri))
                return Heard([], [])
        elif len(self._uris) >= MAX_URIS:
            text = f"a session may be subscribed to no more than {MAX_URIS} resources"
            return Heard([], [(tag, Problem(SERVER_ERROR, text))])
        self._uris[uri] = None
        self._next.append((tag, uri))
        return Heard(self.listen(now), [])

    def unsubscribe(self, uri: str, now: float) -> Heard[Tag]:
        """Want it no more; a subscription that had no listen yet is answered."""
        if uri not in self._uris:
            return Heard([], [])
        del self._uris[uri]
        answers: list[tuple[Tag, Problem | None]] = [
            (tag, None) for tag, waits in self._next if waits == uri
        ]
        self._next = [each for each in self._next if each[1] != uri]
        return Heard(self.listen(now), answers)

    def brings(self, number: object) -> bool:
        """Whether notifications of that listen are for the client."""
        return self._current is not None and self._current.number == number

    def acknowledged(self, number: object, uris: Collection[str], now: float) -> Heard[Tag]:
        """The backend has agreed to that listen, and to these resources."""
        opened = self._opening
        if opened is None or opened.number != number:
            return Heard([], [])
        before, self._current, self._opening = self._current, opened, None
        answers: list[tuple[Tag, Problem | None]] = []
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
            opened.asked = self._wanted()
        return Heard(lines, answers)

    def ended(self, number: object, why: str, now: float) -> Heard[Tag] | None:
        """That listen is over; None where it is none of these."""
        opening, current = self._opening, self._current
        if opening is not None and opening.number == number:
            self._opening = None
            problem = Problem(INTERNAL_ERROR, f"the server did not subscribe: {why}")
            for _, uri in opening.waiters:
                self._uris.pop(uri, None)
            lines = self.listen(now) if self._stale else []
            self._listen_later(now)
            return Heard(lines, [(tag, problem) for tag, _ in opening.waiters])
        if current is not None and current.number == number:
            self._current = None
            if now - current.since >= LONGEST_PAUSE:
                self._failures = 0
            self._listen_later(now)
            return Heard([], [])
        return None

    def tick(self, now: float) -> Heard[Tag]:
        """Give up a listen that nobody acknowledges; listen again."""
        opening = self._opening
        if opening is not None and now >= opening.since + ACKNOWLEDGED_SECONDS:
            heard = self.ended(opening.number, "it does not answer", now)
            assert heard is not None
            return Heard([self._cancel(opening.number), *heard.to_backend], heard.answers)
        if self._again is not None and now >= self._again:
            return Heard(self.listen(now), [])
        return Heard([], [])

    def _wanted(self) -> dict[str, object]:
        wanted: dict[str, object] = dict.fromkeys(self._flags, True)
        if self._uris:
            wanted["resourceSubscriptions"] = list(self._uris)
        return wanted

    def _listen_later(self, now: float) -> None:
        """After a pause, where something is wanted that no listen brings."""
        asked = {} if self._current is None else self._current.asked
        if self._opening is not None or self._wanted() == asked:
            return
        if self._failures < MAX_RELISTENS:
            self._again = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
            self._failures += 1


_NOT_GRANTED = Problem(INTERNAL_ERROR, "the server does not offer subscriptions to this resource")
