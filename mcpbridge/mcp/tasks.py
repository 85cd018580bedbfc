"""
Tasks of 2026-07-28 (extension `io.modelcontextprotocol/tasks`, SEP-2663) on
one process of a server: their ids as clients see them, and which still run.

Knows task ids and the members of a task; must not know requests in flight,
nor who asks.  Two processes may give equal ids, so a client's id of a task is
`OWNER.ID`: which process has it, in words that nobody guesses, and the id
that the server gave.
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

#: The notification that carries a task.
TASK_CHANGED = "notifications/tasks"
#: The member of a listen request's filter, and of its acknowledgement, that names tasks.
TASK_IDS = "taskIds"
#: Of how many unfinished tasks of a process it is known that they run, those made last.
MAX_TASKS = 1024
#: The most tasks that one `subscriptions/listen` may name.
MAX_LISTENED_TASKS = 1024
#: How long nobody may have heard of a task before the bridge asks itself, at least.
POLL_SECONDS = 10.0
#: How long the result of a task is kept for its client, once only the bridge knows of it.
RESULT_SECONDS = 60.0

#: Random bytes of an owner's name.
_OWNER_BYTES = 18
_TERMINAL = frozenset({"completed", "failed", "cancelled"})
_DECLARED = encode(TASKS)
#: The members of a task that are kept, where they are not longer than that.
_KEPT = ("createdAt", "ttlMs", "pollIntervalMs")
_KEPT_BYTES = 256


def declares_tasks(request: ModernRequest) -> bool:
    """Whether the client of a request takes a task for an answer ("Capability Negotiation")."""
    if _DECLARED not in request.capabilities:
        return False
    return TASKS in members_of(members_of(request.capabilities).get("extensions"))


def undeclared() -> MissingCapability:
    """What a client is told that names a task, and has not declared tasks."""
    text = f"the client has not declared the extension {TASKS}"
    return MissingCapability(text, {"extensions": {TASKS: {}}})


def unknown_task(request: ModernRequest) -> InvalidParams | MissingCapability:
    """
    What a client is told of a task that is not there, or is not its own: the
    same, so that nobody learns which ("Protocol Errors").
    """
    if not declares_tasks(request):
        return undeclared()
    return InvalidParams("there is no such task: it never was, has expired, or its process ended")


def owner_of(task: str) -> tuple[str, str]:
    """The owner in a client's id of a task, and the server's own id; an owner `""` for none."""
    owner, dot, ident = task.partition(".")
    return (owner, ident) if dot else ("", task)


def for_owner(request: ModernRequest, ident: str) -> ModernRequest:
    """A request of `tasks/*` with the server's own id of the task."""
    params = changed(request.params, {"taskId": ident})
    return _with_params(request, params)


def task_ids(request: ModernRequest) -> list[str]:
    """
    The tasks that a `subscriptions/listen` names, each once.  Raises
    `InvalidParams` where they are no list of texts, or too many.
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


def listening_for(request: ModernRequest, idents: Iterable[str]) -> ModernRequest:
    """A `subscriptions/listen` for these tasks alone, by the server's own ids."""
    params = changed(request.params, {"notifications": {TASK_IDS: list(idents)}})
    return _with_params(request, params)


def without_tasks(request: ModernRequest) -> ModernRequest | None:
    """A `subscriptions/listen` for all but tasks; None where it is for tasks alone."""
    rest = changed(_filter(request), {TASK_IDS: msgspec.UNSET})
    if not rest:
        return None
    return _with_params(request, changed(request.params, {"notifications": rest}))


def promised_tasks(line: bytes) -> tuple[Members, list[str]]:
    """What an acknowledgement promises: the members beside tasks, and the tasks."""
    params = members_of(members_of(line).get("params"))
    promised = members_of(params.get("notifications"))
    return promised, strings_of(promised.pop(TASK_IDS, None))


def acknowledged(request: ModernRequest, promised: Members, tasks: list[str]) -> bytes:
    """The acknowledgement of a stream that several processes write."""
    told: dict[str, object] = {**promised}
    if tasks:
        told[TASK_IDS] = tasks
    params = {"_meta": {SUBSCRIPTION_ID: request.outer["id"]}, "notifications": told}
    return notification_line(ACKNOWLEDGED, params)


def _filter(request: ModernRequest) -> Members:
    return members_of(request.params.get("notifications"))


def _with_params(request: ModernRequest, params: Members) -> ModernRequest:
    outer = changed(request.outer, {"params": params})
    return msgspec.structs.replace(request, outer=outer, params=params)


class Task(msgspec.Struct, eq=False):
    """
    An unfinished task: until when it keeps its process, when the bridge is to
    ask after it, and of its members what is needed to say how it ended.
    """

    since: float
    until: float
    ask_at: float
    kept: Members
    #: Whether it is over, and its client has not been told yet.
    over: bool = False


class Tasks:
    """
    The tasks of one process.

    `limit` is the longest that one keeps its process, in seconds; `now` tells
    the time.  Their length is the number of unfinished ones, as far as known
    from what passes; at most `MAX_TASKS` are remembered, those made last.
    """

    def __init__(self, *, limit: float = 3600.0, now: Callable[[], float] = lambda: 0.0) -> None:
        #: The name of the process in its tasks' ids.
        self.owner = secrets.token_urlsafe(_OWNER_BYTES)
        self._limit = limit
        self._now = now
        self._tasks: dict[str, Task] = {}

    def __len__(self) -> int:
        """How many keep their process."""
        return len(self._tasks)

    def name(self, ident: str) -> str:
        """A client's id of a task."""
        return f"{self.owner}.{ident}"

    # What passes.

    def from_result(self, result: Members, method: str, *, own: bool = False) -> Members:
        """
        The result of a request as its client must see it; with `own` it is
        the bridge's.  What is no task is the same as before.
        """
        if method not in TASK_METHODS and string_of(result.get("resultType")) != "task":
            return result
        return self._heeded(result, own=own)

    def from_notification(self, params: Members, *, heard: bool = True) -> Members:
        """The same for the params of `notifications/tasks`; `heard`: a client gets it."""
        return self._heeded(params, own=not heard)

    def from_acknowledgement(self, params: Members) -> Members:
        """The params of an acknowledgement, with the tasks by their clients' ids."""
        promised = members_of(params.get("notifications"))
        if TASK_IDS not in promised:
            return params
        named = [self.name(each) for each in strings_of(promised[TASK_IDS])]
        return changed(params, {"notifications": changed(promised, {TASK_IDS: named})})

    def _heeded(self, task: Members, *, own: bool) -> Members:
        ident = string_of(task.get("taskId"))
        if ident is None:
            return task
        self._heed(ident, task, own)
        return changed(task, {"taskId": self.name(ident)})

    def _heed(self, ident: str, task: Members, own: bool) -> None:
        status = string_of(task.get("status"))
        now = self._now()
        known = self._tasks.get(ident)
        if status is None:
            return
        if status in _TERMINAL:
            if known is not None and own:
                known.over = True
                known.until = min(known.until, now + RESULT_SECONDS)
            elif known is not None:
                del self._tasks[ident]
            return
        if known is None:
            if len(self._tasks) >= MAX_TASKS:
                # While this many others keep the process, one more or less does not matter.
                del self._tasks[next(iter(self._tasks))]
            known = self._tasks[ident] = Task(now, now, now, {})
        ttl = _seconds(task.get("ttlMs"), self._limit)
        poll = _seconds(task.get("pollIntervalMs"), self._limit)
        known.until = known.since + (self._limit if ttl is None else ttl)
        known.ask_at = now + max(POLL_SECONDS, 2 * (poll or 0.0))
        # Of large messages only views would be kept, and with them all of the message.
        known.kept = {
            name: msgspec.Raw(bytes(task[name]))
            for name in _KEPT
            if name in task and memoryview(task[name]).nbytes <= _KEPT_BYTES
        }

    def forget(self, ident: str) -> None:
        """The server does not know the task any more."""
        self._tasks.pop(ident, None)

    # What is to be done.

    def expire(self) -> None:
        """Let go what has kept the process for long enough."""
        now = self._now()
        for ident in [ident for ident, task in self._tasks.items() if task.until <= now]:
            del self._tasks[ident]

    def to_ask(self) -> str | None:
        """The id of a task that nobody has heard of for long enough, if there is one."""
        now = self._now()
        for ident, task in self._tasks.items():
            if task.ask_at <= now and not task.over:
                # Should there be no answer that says when.
                task.ask_at = now + POLL_SECONDS
                return ident
        return None

    def failed(self, ident: str, why: str) -> Mapping[str, object] | None:
        """
        An unfinished task as one that has failed, which is what is told of it
        when its process has ended; None where it is not known to run.
        """
        task = self._tasks.get(ident)
        if task is None or task.over:
            return None
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told: dict[str, object] = {"createdAt": now, "ttlMs": None, **task.kept}
        return {
            "taskId": self.name(ident),
            "status": "failed",
            "statusMessage": why,
            **told,
            "lastUpdatedAt": now,
            "error": {"code": -32603, "message": why},
        }


def _seconds(raw: msgspec.Raw | None, most: float) -> float | None:
    """
    A duration that a task gives in milliseconds, in seconds, from 0 to `most`; None
    for no number.  An integer may have more digits than a float can hold.
    """
    number = number_of(raw)
    return None if number is None else min(max(0, number), most * 1000) / 1000


def failed_line(request: ModernRequest, task: Mapping[str, object]) -> bytes:
    """A notification on a stream that a task has failed."""
    params = {"_meta": {SUBSCRIPTION_ID: request.outer["id"]}, **task}
    return notification_line(TASK_CHANGED, params)
