"""
Questions that wait for their turn: a few are asked at a time, and each only once.

Knows who waits, and from which address; must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mcpbridge.auth.shared_places import SharedPlaces
from mcpbridge.timers import Timer

T = TypeVar("T")


class _Question(Generic[T]):
    __slots__ = ("address", "key", "start", "timer", "waiting")

    def __init__(
        self,
        key: Hashable,
        start: Callable[[], Deferred[T | None]],
        address: str | None,
        timer: Timer,
    ) -> None:
        self.key = key
        self.start = start
        #: That of the first who has asked, whose share it counts for.
        self.address = address
        #: Runs until the question is asked.
        self.timer = timer
        #: Those who wait for the answer, in order.
        self.waiting: dict[Deferred[T | None], None] = {}


class QuestionQueue(Generic[T]):
    """
    Asks questions in the order in which they come, except that a question waits while its
    address has its share of those that are being asked.

    `waiting` bounds the requests that wait for an answer, `asked` the questions that are
    being asked.  A question that nobody waits for any more is dropped, unless it is being
    asked: the one who comes next will want the answer.  One that is not asked within
    `seconds` has no answer.
    """

    def __init__(
        self, clock: IReactorTime, waiting: SharedPlaces, asked: SharedPlaces, seconds: float
    ) -> None:
        self._clock = clock
        self._waiting = waiting
        self._asked = asked
        self._seconds = seconds
        #: All questions, by what tells them apart, and those of them that wait for their turn.
        self._questions: dict[Hashable, _Question[T]] = {}
        self._queued: dict[Hashable, _Question[T]] = {}
        self._work: dict[Hashable, Deferred[Any]] = {}
        self._starting = self._stopped = False

    def __len__(self) -> int:
        return len(self._questions)

    def ask(
        self, key: Hashable, start: Callable[[], Deferred[T | None]], address: str | None
    ) -> Deferred[T | None] | None:
        """
        Return a Deferred of the answer, or of None without one; None if too many wait.

        `start` asks, unless the same question waits already; what it returns must not fail.
        """
        if self._stopped or not self._waiting.take(address):
            return None
        question = self._questions.get(key)
        if question is None:
            question = _Question(key, start, address, Timer(self._clock))
            self._questions[key] = self._queued[key] = question
            question.timer.start(self._seconds, partial(self._end, question, None))
        waiting: Deferred[T | None] = Deferred(partial(self._leave, question))
        question.waiting[waiting] = None
        waiting.addBoth(self._left, address)
        self._start_questions()
        return waiting

    def stop(self) -> None:
        """Answer all who wait with None, and nobody from now on."""
        self._stopped = True
        for work in tuple(self._work.values()):
            work.cancel()
        for question in tuple(self._questions.values()):
            self._end(question, None)

    def _left(self, result: T | None, address: str | None) -> T | None:
        # The result is a failure if the request was cancelled.
        self._waiting.give_back(address)
        return result

    def _leave(self, question: _Question[T], waiting: Deferred[T | None]) -> None:
        question.waiting.pop(waiting, None)
        if not question.waiting and question.key in self._queued:
            self._end(question, None)

    def _start_questions(self) -> None:
        """Ask what may be asked; not recursively, as an answer may be there at once."""
        if self._starting:
            return
        self._starting = True
        try:
            while (question := self._next()) is not None:
                del self._queued[question.key]
                question.timer.stop()
                work = question.start()
                self._work[question.key] = work
                work.addCallback(self._answered, question)
        finally:
            self._starting = False

    def _next(self) -> _Question[T] | None:
        """Take a place for the first question that may be asked; None if none may."""
        if self._stopped:
            return None
        for question in self._queued.values():
            if self._asked.take(question.address):
                return question
        return None

    def _answered(self, answer: T | None, question: _Question[T]) -> None:
        self._work.pop(question.key, None)
        self._asked.give_back(question.address)
        self._end(question, answer)
        self._start_questions()

    def _end(self, question: _Question[T], answer: T | None) -> None:
        if self._questions.get(question.key) is question:
            del self._questions[question.key]
            self._queued.pop(question.key, None)
        question.timer.stop()
        waiting, question.waiting = tuple(question.waiting), {}
        # What one of them does may make another give up.
        for each in waiting:
            if not each.called:
                each.callback(answer)
