"""
A real client of the second generation: the official Python SDK's `Client`.

Runs in an environment that has that SDK and nothing of ours.  The arguments and the output are
those of `client1.py`; REVISION may be `auto` as well.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from mcp import Client, types
from mcp.client import session as sessions
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

ELICITATION_SINCE = "2025-06-18"
FIRST_MODERN = "2026-07-28"
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
    assert not result.is_error, said
    return said


class Visit:
    """One session with one backend, or what stands for one where there are none."""

    def __init__(self, revision: str, plan: dict[str, Any]) -> None:
        self.revision = revision
        self.plan = plan
        self.updated: list[str] = []
        self.client: Any = None

    async def elicit(self, context: Any, params: Any) -> types.ElicitResult:
        """Answer what the backend asks."""
        return types.ElicitResult(action="accept", content=self.plan["elicitation"]["answer"])

    async def note(self, message: Any) -> None:
        """Keep which resources are said to have changed."""
        if isinstance(message, types.ResourceUpdatedNotification):
            self.updated.append(str(message.params.uri))

    @contextlib.asynccontextmanager
    async def connected(self) -> Any:
        """The client, connected; yields the revision that was agreed on."""
        url = self.plan["url"]
        connect = sse_client if url.endswith("/sse") else streamable_http_client
        legacy = self.revision < FIRST_MODERN
        self.client = Client(
            connect(url),
            mode="legacy" if legacy else self.revision,
            elicitation_callback=self.elicit if self.revision >= ELICITATION_SINCE else None,
            message_handler=self.note,
        )
        async with self.client:
            if self.revision == FIRST_MODERN:
                # a pinned client asks for nothing, and so does not know what the server offers
                session = self.client.session
                told = await session.send_discover(self.revision)
                session.adopt(types.DiscoverResult.model_validate(told))
            yield self.client.protocol_version

    async def list(self, tool: str) -> None:
        listed = await self.client.list_tools()
        assert tool in {one.name for one in listed.tools}, listed.tools

    async def call(self, tool: str, arguments: dict[str, Any], says: str) -> None:
        said = text(await self.client.call_tool(tool, arguments))
        assert says in said, said

    async def progress(self, tool: str, arguments: dict[str, Any], steps: int) -> None:
        seen: list[float] = []

        async def note(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        text(await self.client.call_tool(tool, arguments, progress_callback=note))
        await until(lambda: len(seen) >= steps, f"progress beyond {seen}", 5)
        assert seen == list(range(1, steps + 1)), seen

    async def cancel(self, tool: str, arguments: dict[str, Any], leaves_mark: bool) -> None:
        call = asyncio.create_task(self.client.call_tool(tool, arguments))
        try:
            if leaves_mark:
                mark = arguments["mark"]
                await until(lambda: f"started {mark}" in marks(), "the start")
            else:
                await asyncio.sleep(0.3)
            assert not call.done(), call.result()
        finally:
            call.cancel()
            await asyncio.wait([call])
        assert call.cancelled(), call.result()
        if leaves_mark:
            await until(lambda: f"cancelled {mark}" in marks(), "the cancellation")
        await self.call(**self.plan["call"])

    async def elicitation(
        self, tool: str, arguments: dict[str, Any], answer: dict[str, Any], says: str
    ) -> None:
        if self.revision < ELICITATION_SINCE:
            raise Absent("the revision has no elicitation")
        await self.call(tool, arguments, says)

    async def subscription(self, uri: str, tool: str, arguments: dict[str, Any]) -> None:
        resources = self.client.server_capabilities.resources
        if not (resources and resources.subscribe):
            raise Absent("the server has no resource subscriptions")
        if self.client.protocol_version >= FIRST_MODERN:
            async with self.client.listen(resource_subscriptions=[uri]) as events:
                text(await self.client.call_tool(tool, arguments))
                try:
                    async with asyncio.timeout(10):
                        event = await anext(events)
                except TimeoutError:
                    raise AssertionError("the update has not come") from None
                assert event.uri == uri, event
            return
        await self.client.session.subscribe_resource(uri)
        text(await self.client.call_tool(tool, arguments))
        await until(lambda: self.updated, "the update")
        assert self.updated[0] == uri, self.updated
        await self.client.session.unsubscribe_resource(uri)


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
    if revision < FIRST_MODERN:
        # what the SDK asks for in a handshake; it accepts all revisions before it as well
        sessions.LATEST_HANDSHAKE_VERSION = revision
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
