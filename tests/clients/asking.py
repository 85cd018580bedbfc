"""
Real clients of 2026-07-28 that are asked something while they call a tool: the
official Python SDK's `Client`, so many at once, each with calls in a row.

`asking.py URL CLIENTS CALLS`, where the server is `backends/tools.py` of the
end-to-end tests; writes what each call was asked and told, as JSON.
"""

import asyncio
import json
import sys
import uuid
from typing import Any

from mcp import Client, types
from mcp.client.streamable_http import streamable_http_client


async def converse(url: str, calls: int) -> list[dict[str, Any]]:
    """One client; its answer is always what it was asked."""
    asked: list[str] = []

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"answer": params.message})

    seen = []
    connection = streamable_http_client(url)
    async with Client(connection, mode="2026-07-28", elicitation_callback=elicit) as client:
        for _ in range(calls):
            token = str(uuid.uuid4())
            result = await client.call_tool("ask", {"token": token})
            said = json.loads(result.content[0].text)
            seen.append({"token": token, "asked": list(asked), "said": said})
            asked.clear()
    return seen


async def main(url: str, clients: int, calls: int) -> None:
    """All of them."""
    seen = await asyncio.gather(*(converse(url, calls) for _ in range(clients)))
    print(json.dumps([each for one in seen for each in one]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
