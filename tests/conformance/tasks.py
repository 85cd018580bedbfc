"""
A stdio server of 2026-07-28 with the tasks extension (SEP-2663), for the scenarios
of the conformance suite that are about it.

    python -m tests.conformance.tasks

In the standard library alone: no official SDK has the extension.  Its tasks are
called 1, 2 and on, so those of two processes have equal ids.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
TASKS = PREFIX + "tasks"
SERVER = {PREFIX + "serverInfo": {"name": "tasks", "version": "1"}}
TTL_MS = 900_000
POLL_MS = 100
TERMINAL = ("completed", "failed", "cancelled")
CONFIRM = {"type": "object", "properties": {"confirm": {"type": "boolean"}}}
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
REQUIRED = ("failing_job", "protocol_error_job", "test_tool_with_task")


class Wrong(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, text: str, data: Any = None) -> None:
        super().__init__(text)
        self.error = {"code": code, "message": text}
        if data is not None:
            self.error["data"] = data


def undeclared() -> Wrong:
    needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
    return Wrong(-32021, "the client has not declared tasks", needed)


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"resultType": "complete", "content": [{"type": "text", "text": said}], **more}


def elicit(message: str, schema: Any) -> dict[str, Any]:
    params = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


class Task:
    """A call that goes on in a thread of its own."""

    def __init__(self, ident: str, work: Callable[[Task], dict[str, Any]]) -> None:
        self.ident = ident
        self.state = "working"
        self.end: dict[str, Any] = {}
        self.questions: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.created = stamp()
        self.told = threading.Condition()
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Task], dict[str, Any]]) -> None:
        try:
            self._end("completed", result=work(self))
        except Wrong as wrong:
            self._end("failed", error=wrong.error)

    def _end(self, state: str, **end: Any) -> None:
        with self.told:
            if self.state not in TERMINAL:
                self.state, self.end, self.questions = state, end, {}
            self.told.notify_all()

    def sleep(self, seconds: float) -> None:
        """Until then, or until it is cancelled."""
        with self.told:
            self.told.wait_for(lambda: self.state in TERMINAL, seconds)

    def ask(self, questions: dict[str, Any]) -> dict[str, Any]:
        """Have the client answer these."""
        with self.told:
            self.state, self.questions = "input_required", dict(questions)
            self.told.wait_for(lambda: not self.questions)
            return self.answers

    def answer(self, answers: dict[str, Any]) -> None:
        with self.told:
            for key in set(answers) & set(self.questions):
                self.answers[key] = answers[key]
                del self.questions[key]
            if not self.questions and self.state == "input_required":
                self.state = "working"
            self.told.notify_all()

    def cancel(self) -> None:
        self._end("cancelled")

    def seed(self) -> dict[str, Any]:
        return {
            "taskId": self.ident,
            "status": self.state,
            "createdAt": self.created,
            "lastUpdatedAt": stamp(),
            "ttlMs": TTL_MS,
            "pollIntervalMs": POLL_MS,
        }

    def detailed(self) -> dict[str, Any]:
        with self.told:
            asked = {"inputRequests": dict(self.questions)} if self.questions else {}
            return {"resultType": "complete", **self.seed(), **self.end, **asked}


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# The tools.


def slow_compute(task: Task | None, arguments: dict[str, Any]) -> dict[str, Any]:
    seconds = float(arguments.get("seconds", 0))
    if task is None:
        time.sleep(seconds)
    else:
        task.sleep(seconds)
    return text(f"computed {arguments.get('label', '')}")


def failing_job(task: Task | None, arguments: dict[str, Any]) -> dict[str, Any]:
    if task is not None:
        task.sleep(1)
    return text("the job has failed", isError=True)


def protocol_error_job(task: Task | None, arguments: dict[str, Any]) -> dict[str, Any]:
    raise Wrong(-32603, "the job has broken the protocol")


def confirm_delete(task: Task | None, arguments: dict[str, Any]) -> dict[str, Any]:
    if task is None:
        raise undeclared()
    answers = task.ask({"confirm": elicit(f"Delete {arguments.get('filename')}?", CONFIRM)})
    return text(f"confirmed: {json.dumps(answers)}")


def multi_input(task: Task | None, arguments: dict[str, Any]) -> dict[str, Any]:
    if task is None:
        raise undeclared()
    answers = task.ask({"one": elicit("Who?", NAME), "two": elicit("Who else?", NAME)})
    return text(json.dumps(answers))


WORK: dict[str, Callable[[Task | None, dict[str, Any]], dict[str, Any]]] = {
    "slow_compute": slow_compute,
    "failing_job": failing_job,
    "protocol_error_job": protocol_error_job,
    "confirm_delete": confirm_delete,
    "multi_input": multi_input,
}


class Server:
    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._writing = threading.Lock()

    def answer(self, message: dict[str, Any]) -> None:
        try:
            answer = {"result": {**self._ask(message), "_meta": SERVER}}
        except Wrong as wrong:
            answer = {"error": wrong.error}
        line = json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer})
        with self._writing:
            print(line, flush=True)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        method, params = message["method"], message["params"]
        able = params["_meta"][PREFIX + "clientCapabilities"]
        declared = TASKS in able.get("extensions", {})
        cached = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        if method == "server/discover":
            offered: dict[str, Any] = {"tools": {}, "extensions": {TASKS: {}}}
            return {**cached, "supportedVersions": [VERSION], "capabilities": offered}
        if method == "tools/list":
            names = ["greet", *WORK, "test_tool_with_task"]
            schema = {"type": "object"}
            return {**cached, "tools": [{"name": each, "inputSchema": schema} for each in names]}
        if method == "tools/call":
            return self._call(params, declared)
        if method in ("tasks/get", "tasks/update", "tasks/cancel"):
            if not declared:
                raise undeclared()
            return self._of_task(method, params)
        raise Wrong(-32601, f"no method {method!r}")

    def _call(self, params: dict[str, Any], declared: bool) -> dict[str, Any]:
        name, arguments = params["name"], params.get("arguments", {})
        if name == "greet":
            return text(f"Hello, {arguments.get('name')}!")
        if name in REQUIRED and not declared:
            raise undeclared()
        if name == "test_tool_with_task":
            given = params.get("inputResponses")
            if not given:
                asked = {"user_name": elicit("What is your name?", NAME)}
                return {"resultType": "input_required", "inputRequests": asked}
            return self._begin(lambda task: text(f"Hello, {given['user_name']['content']}"))
        if name not in WORK:
            raise Wrong(-32602, f"no tool {name!r}")
        if not declared:
            return WORK[name](None, arguments)
        return self._begin(lambda task: WORK[name](task, arguments))

    def _begin(self, work: Callable[[Task], dict[str, Any]]) -> dict[str, Any]:
        ident = str(len(self._tasks) + 1)
        task = self._tasks[ident] = Task(ident, work)
        return {**task.seed(), "status": "working", "resultType": "task"}

    def _of_task(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        task = self._tasks.get(params["taskId"])
        if task is None:
            raise Wrong(-32602, "Task not found")
        if method == "tasks/get":
            return task.detailed()
        if method == "tasks/update":
            task.answer(params.get("inputResponses", {}))
        else:
            task.cancel()
        return {"resultType": "complete"}


def main() -> None:
    server = Server()
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message and "method" in message:
            server.answer(message)


if __name__ == "__main__":
    main()
