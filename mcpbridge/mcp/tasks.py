"""
Tasks of 2026-07-28 (extension `io.modelcontextprotocol/tasks`, SEP-2663) on
one process of a server: their ids as clients see them, and which still run.

Knows task ids and the members of a task; must not know requests in flight, nor
who sends them.  Two processes may give equal ids.  So a client knows a task as
`OWNER.ID`: an owner that stands for the process, and that nobody can guess,
and the id that the server gave.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from mcpbridge.errors import InvalidParams, MissingCapability
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    encode,
    members_of,
    notification_line,
    number_of,
    string_of,
    strings_of,
)
from mcpbridge.mcp.modern_request import (
    ACKNOWLEDGED,
    SUBSCRIPTION_ID,
    TASK_METHODS,
    TASKS,
    ModernRequest,
)

#: The notification of a task's state.
TASK_CHANGED = "notifications/tasks"
#: The member of a subscription's filter, and of its acknowledgement, that names tasks.
TASK_IDS = "taskIds"
#: How many unfinished tasks of a process are remembered, those created last.
MAX_TASKS = 1024
#: The most tasks in one subscription.
MAX_LISTENED_TASKS = 1024
#: How long the bridge hears nothing of a task before it polls it, in seconds, at least.
POLL_SECONDS = 10.0
#: How long a finished task whose client does not know yet keeps its process, in seconds.
RESULT_SECONDS = 60.0

#: The random bytes in an owner's name.
_OWNER_BYTES = 18
_TERMINAL = frozenset({"completed", "failed", "cancelled"})
_DECLARED = encode(TASKS)
#: The members of a task that are kept, where they have at most `_KEPT_BYTES`.
_KEPT = ("createdAt", "ttlMs", "pollIntervalMs")
_KEPT_BYTES = 256


def declares_tasks(request: ModernRequest) -> bool:
    """Tell whether a request's client accepts a task as its result ("Capability Negotiation")."""
    if _DECLARED not in request.capabilities:
        return False
    return TASKS in members_of(members_of(request.capabilities).get("extensions"))


def undeclared() -> MissingCapability:
    """Return the refusal of a request that names a task, from a client without tasks."""
    text = f"the client has not declared the extension {TASKS}"
    return MissingCapability(text, {"extensions": {TASKS: {}}})


def unknown_task(request: ModernRequest) -> InvalidParams | MissingCapability:
    """
    Return the refusal of a request for a task that does not exist, or is
    another client's: the same, so that nobody learns which ("Protocol Errors").
    """
    if not declares_tasks(request):
        return undeclared()
    return InvalidParams("there is no such task: it never was, has expired, or its process ended")


def owner_of(task: str) -> tuple[str, str]:
    """Split a client's id of a task into the owner, `""` for none, and the server's own id."""
    owner, dot, ident = task.partition(".")
    return (owner, ident) if dot else ("", task)


def for_owner(request: ModernRequest, ident: str) -> ModernRequest:
    """Return a request of `tasks/*` with the server's own id of the task."""
    params = changed(request.params, {"taskId": ident})
    return _with_params(request, params)


def task_ids(request: ModernRequest) -> list[str]:
    """
    Return the tasks that a `subscriptions/listen` names, each once.

    Raise `InvalidParams` where they are no list of strings, or more than
    `MAX_LISTENED_TASKS`.
    """
    raw = _filter(request).get(TASK_IDS)
    if raw is None:
        return []
    try:
        named = msgspec.json.decode(raw, type=list[str])
    except (msgspec.MsgspecError, ValueError):
        raise InvalidParams(f"params.notifications.{TASK_IDS} must be a list of strings") from None
    if len(named) > MAX_LISTENED_TASKS:
        raise InvalidParams(
            f"a stream may be about {MAX_LISTENED_TASKS} tasks at most (MAX_LISTENED_TASKS)"
        )
    return list(dict.fromkeys(named))


def subscription_to(request: ModernRequest, idents: Iterable[str]) -> ModernRequest:
    """Return a `subscriptions/listen` to these tasks alone, by the server's own ids."""
    params = changed(request.params, {"notifications": {TASK_IDS: list(idents)}})
    return _with_params(request, params)


def without_tasks(request: ModernRequest) -> ModernRequest | None:
    """Return a `subscriptions/listen` to all but tasks; None where it names tasks alone."""
    rest = changed(_filter(request), {TASK_IDS: msgspec.UNSET})
    if not rest:
        return None
    return _with_params(request, changed(request.params, {"notifications": rest}))


def promised_tasks(line: bytes) -> tuple[Members, list[str]]:
    """Return what an acknowledgement promises: the members beside tasks, and the tasks."""
    params = members_of(members_of(line).get("params"))
    promised = members_of(params.get("notifications"))
    return promised, strings_of(promised.pop(TASK_IDS, None))


def acknowledged(request: ModernRequest, promised: Members, tasks: list[str]) -> bytes:
    """Return the acknowledgement of a stream that several processes write."""
    granted: dict[str, object] = {**promised}
    if tasks:
        granted[TASK_IDS] = tasks
    params = {"_meta": {SUBSCRIPTION_ID: request.outer["id"]}, "notifications": granted}
    return notification_line(ACKNOWLEDGED, params)


def _filter(request: ModernRequest) -> Members:
    return members_of(request.params.get("notifications"))


def _with_params(request: ModernRequest, params: Members) -> ModernRequest:
    outer = changed(request.outer, {"params": params})
    return msgspec.structs.replace(request, outer=outer, params=params)


class Task(msgspec.Struct, eq=False):
    """
    An unfinished task.

    It was created at `since` and keeps its process until `until`; at
    `poll_at` the bridge is to poll it.  `kept` are the members that are needed
    to tell how it ended, should its process end.
    """

    since: float
    until: float
    poll_at: float
    kept: Members
    #: Whether it is finished, and its client does not know yet.
    finished: bool = False


class Tasks:
    """
    The tasks of one process.

    `limit` is the longest time that a task keeps its process, in seconds;
    `now` tells the time.  The length is the number of unfinished tasks, as
    far as the messages that pass tell; at most `MAX_TASKS` are remembered,
    those created last.
    """

    def __init__(self, *, limit: float = 3600.0, now: Callable[[], float] = lambda: 0.0) -> None:
        #: The name that stands for the process in its tasks' ids.
        self.owner = secrets.token_urlsafe(_OWNER_BYTES)
        self._limit = limit
        self._now = now
        self._tasks: dict[str, Task] = {}

    def __len__(self) -> int:
        """How many tasks keep the process."""
        return len(self._tasks)

    def name(self, ident: str) -> str:
        """Return a client's id of a task."""
        return f"{self.owner}.{ident}"

    # Messages that pass.

    def from_result(self, result: Members, method: str, *, own: bool = False) -> Members:
        """
        Return the result of a request as its client must see it; with `own`
        the request is the bridge's.  A result that is no task stays the same.
        """
        if method not in TASK_METHODS and string_of(result.get("resultType")) != "task":
            return result
        return self._renamed(result, own=own)

    def from_notification(self, params: Members, *, delivered: bool = True) -> Members:
        """Do the same for params of `notifications/tasks`; `delivered`: a client gets them."""
        return self._renamed(params, own=not delivered)

    def from_acknowledgement(self, params: Members) -> Members:
        """Return the params of an acknowledgement, with its tasks by their clients' ids."""
        promised = members_of(params.get("notifications"))
        if TASK_IDS not in promised:
            return params
        named = [self.name(each) for each in strings_of(promised[TASK_IDS])]
        return changed(params, {"notifications": changed(promised, {TASK_IDS: named})})

    def _renamed(self, task: Members, *, own: bool) -> Members:
        ident = string_of(task.get("taskId"))
        if ident is None:
            return task
        self._update(ident, task, own)
        return changed(task, {"taskId": self.name(ident)})

    def _update(self, ident: str, task: Members, own: bool) -> None:
        status = string_of(task.get("status"))
        now = self._now()
        known = self._tasks.get(ident)
        if status is None:
            return
        if status in _TERMINAL:
            if known is not None and own:
                known.finished = True
                known.until = min(known.until, now + RESULT_SECONDS)
            elif known is not None:
                del self._tasks[ident]
            return
        if known is None:
            if len(self._tasks) >= MAX_TASKS:
                # With so many others that keep the process, one does not matter.
                del self._tasks[next(iter(self._tasks))]
            known = self._tasks[ident] = Task(now, now, now, {})
        ttl = _seconds(task.get("ttlMs"), self._limit)
        poll = _seconds(task.get("pollIntervalMs"), self._limit)
        known.until = known.since + (self._limit if ttl is None else ttl)
        known.poll_at = now + max(POLL_SECONDS, 2 * (poll or 0.0))
        # Copies: a view of a large message would keep all of it.
        known.kept = {
            name: msgspec.Raw(bytes(task[name]))
            for name in _KEPT
            if name in task and len(task[name]) <= _KEPT_BYTES
        }

    def forget(self, ident: str) -> None:
        """Forget a task that the server does not know any more."""
        self._tasks.pop(ident, None)

    # Upkeep.

    def expire(self) -> None:
        """Forget the tasks that have kept the process for long enough."""
        now = self._now()
        for ident in [ident for ident, task in self._tasks.items() if task.until <= now]:
            del self._tasks[ident]

    def next_to_poll(self) -> str | None:
        """Return the id of a task that is due to be polled; None where none is."""
        now = self._now()
        for ident, task in self._tasks.items():
            if task.poll_at <= now and not task.finished:
                # For the case that the answer does not say when to poll again.
                task.poll_at = now + POLL_SECONDS
                return ident
        return None

    def failed(self, ident: str, why: str) -> Mapping[str, object] | None:
        """
        Return an unfinished task as a failed one, because its process has
        ended; None where it is not known to run.
        """
        task = self._tasks.get(ident)
        if task is None or task.finished:
            return None
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        kept: dict[str, object] = {"createdAt": now, "ttlMs": None, **task.kept}
        return {
            "taskId": self.name(ident),
            "status": "failed",
            "statusMessage": why,
            **kept,
            "lastUpdatedAt": now,
            "error": {"code": -32603, "message": why},
        }


def _seconds(raw: msgspec.Raw | None, most: float) -> float | None:
    """
    Return milliseconds as seconds, from 0 to `most`; None for no number.

    An integer of a peer's may have more digits than a float can hold.
    """
    number = number_of(raw)
    return None if number is None else min(max(0, number), most * 1000) / 1000


def failed_line(request: ModernRequest, task: Mapping[str, object]) -> bytes:
    """Return a notification on a stream that a task has failed."""
    params = {"_meta": {SUBSCRIPTION_ID: request.outer["id"]}, **task}
    return notification_line(TASK_CHANGED, params)
