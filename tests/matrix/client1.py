"""
A real client of the first generation: the official Python SDK's `ClientSession`.

    client1.py REVISION PLAN

Runs in an environment that has that SDK and nothing of ours.  PLAN is a JSON object of backends
by name: where each is (`url`; HTTP+SSE where it ends with `/sse`), and for each operation what to
do, or a sentence that says why there is nothing to do.  For each operation one JSON line is
printed, with the `backend`, the `op`, and either `ok` (with `why` where false) or `absent`: what
one side has not got.  `connect` is an operation too, with the `version` that was agreed on.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from mcp import ClientSession, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

ELICITATION_SINCE = "2025-06-18"
OPERATION_SECONDS = 20


class Absent(Exception):
    """What one side has not got."""


def marks() -> list[str]:
    """What the backends have noted."""
    with open(os.environ["MATRIX_MARKS"], encoding="utf-8") as file:
        return file.read().splitlines()


async def until(happened: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Wait for something; raises AssertionError when it does not happen."""
    for _ in range(int(seconds / 0.02)):
        if happened():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what} has not come")


def text(result: Any) -> str:
    """All that a tool said."""
    said = "\n".join(each.text for each in result.content if each.type == "text")
    assert not result.isError, said
    return said


class Visit:
    """One session with one backend."""

    def __init__(self, revision: str, plan: dict[str, Any]) -> None:
        self.revision = revision
        self.plan = plan
        self.updated: list[str] = []
        self.session: Any = None

    async def elicit(self, context: Any, params: Any) -> types.ElicitResult:
        """Answer what the backend asks."""
        return types.ElicitResult(action="accept", content=self.plan["elicitation"]["answer"])

    async def note(self, message: Any) -> None:
        """Keep which resources are said to have changed."""
        if isinstance(message, types.ServerNotification):
            notification = message.root
            if isinstance(notification, types.ResourceUpdatedNotification):
                self.updated.append(str(notification.params.uri))

    @contextlib.asynccontextmanager
    async def connected(self) -> Any:
        """The session, initialized; yields the revision that was agreed on."""
        url = self.plan["url"]
        connect = sse_client if url.endswith("/sse") else streamable_http_client
        elicit = self.elicit if self.revision >= ELICITATION_SINCE else None
        async with (
            connect(url) as (read, write, *_),
            ClientSession(
                read, write, elicitation_callback=elicit, message_handler=self.note
            ) as self.session,
        ):
            yield (await self.session.initialize()).protocolVersion

    async def list(self, tool: str) -> None:
        listed = await self.session.list_tools()
        assert tool in {one.name for one in listed.tools}, listed.tools

    async def call(self, tool: str, arguments: dict[str, Any], says: str) -> None:
        said = text(await self.session.call_tool(tool, arguments))
        assert says in said, said

    async def progress(self, tool: str, arguments: dict[str, Any], steps: int) -> None:
        seen: list[float] = []

        async def note(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        text(await self.session.call_tool(tool, arguments, progress_callback=note))
        await until(lambda: len(seen) >= steps, f"progress beyond {seen}", 5)
        assert seen == list(range(1, steps + 1)), seen

    async def cancel(self, tool: str, arguments: dict[str, Any], leaves_mark: bool) -> None:
        # this SDK has no means of its own: what the next request will be called is private
        ident = self.session._request_id
        call = asyncio.create_task(self.session.call_tool(tool, arguments))
        try:
            if leaves_mark:
                mark = arguments["mark"]
                await until(lambda: f"started {mark}" in marks(), "the start")
            else:
                await asyncio.sleep(0.3)
            assert not call.done(), call.result()
            params = types.CancelledNotificationParams(requestId=ident, reason="a test")
            cancelled = types.CancelledNotification(params=params)
            await self.session.send_notification(types.ClientNotification(cancelled))
            if leaves_mark:
                await until(lambda: f"cancelled {mark}" in marks(), "the cancellation")
        finally:
            call.cancel()
            await asyncio.wait([call])
            if not call.cancelled():
                call.exception()  # an answer to a cancelled request is no failure
        await self.call(**self.plan["call"])

    async def elicitation(
        self, tool: str, arguments: dict[str, Any], answer: dict[str, Any], says: str
    ) -> None:
        if self.revision < ELICITATION_SINCE:
            raise Absent("the revision has no elicitation")
        await self.call(tool, arguments, says)

    async def subscription(self, uri: str, tool: str, arguments: dict[str, Any]) -> None:
        resources = self.session.get_server_capabilities().resources
        if not (resources and resources.subscribe):
            raise Absent("the server has no resource subscriptions")
        address: Any = uri
        await self.session.subscribe_resource(address)
        text(await self.session.call_tool(tool, arguments))
        await until(lambda: self.updated, "the update")
        assert self.updated[0] == uri, self.updated
        await self.session.unsubscribe_resource(address)


def report(backend: str, op: str, **outcome: Any) -> None:
    """Print the outcome of one operation."""
    print(json.dumps({"backend": backend, "op": op, **outcome}), flush=True)


def reason(error: BaseException) -> str:
    """An error in one line, and those within it."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(reason(each) for each in error.exceptions)
    return f"{type(error).__name__}: {error}"


async def attempt(visit: Visit, backend: str, op: str, plan: Any) -> None:
    """One operation, and its report."""
    try:
        if isinstance(plan, str):
            raise Absent(plan)
        async with asyncio.timeout(OPERATION_SECONDS):
            await getattr(visit, op)(**plan)
    except Absent as absent:
        report(backend, op, absent=str(absent))
    except Exception as error:
        report(backend, op, ok=False, why=reason(error))
    else:
        report(backend, op, ok=True)


async def main(revision: str, plans: dict[str, dict[str, Any]]) -> None:
    """All backends, one after the other."""
    # what the SDK asks for; it accepts all revisions before it as well
    types.LATEST_PROTOCOL_VERSION = revision
    for backend, plan in plans.items():
        visit = Visit(revision, plan)
        version = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(OPERATION_SECONDS):
                    version = await stack.enter_async_context(visit.connected())
                report(backend, "connect", ok=True, version=version)
                for op, what in plan.items():
                    if op != "url":
                        await attempt(visit, backend, op, what)
        except Exception as error:
            report(backend, "close" if version else "connect", ok=False, why=reason(error))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
