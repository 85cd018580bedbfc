"""
A real client on FastMCP that has several tasks run at once.

    tasks_client.py URL TASKS SECONDS

Begins so many tasks at once, asks after all, cancels the last, waits for the others,
the first of which takes SECONDS, and prints what came of each as JSON.
"""

import asyncio
import json
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp_tasks.client import call_tool_task


async def visit(url: str, tasks: int, seconds: float) -> dict[str, Any]:
    """All of it, in one client."""
    async with Client(StreamableHttpTransport(url)) as client:

        async def begin(number: int) -> Any:
            lasts = seconds if number in (0, tasks - 1) else 0.5
            return await call_tool_task(
                client, "work", {"seconds": lasts, "token": str(number)}, raise_on_error=False
            )

        begun = await asyncio.gather(*map(begin, range(tasks)))
        states = [(await each.status()).status for each in begun]
        await begun[-1].cancel()
        results = await asyncio.gather(*(each.result() for each in begun))
        # How a caller sees it who knows nothing of tasks.
        plain = await client.call_tool("work", {"seconds": 0.1, "token": "plain"})
        return {
            "version": client.protocol_version,
            "ids": [each.task_id for each in begun],
            "states": states,
            "results": [each.content[0].text for each in results],
            "plain": plain.data,
        }


if __name__ == "__main__":
    url, tasks, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(visit(url, int(tasks), float(seconds)))))
