"""
Real clients on FastMCP with credentials; they open a browser by themselves, that of `BROWSER`.

The arguments and the output are those of `authorizing.py`.
"""

import asyncio
import json
import os
import shlex
import sys
from typing import Any

from authorizing import causes  # type: ignore[import-not-found]  # a script beside this
from fastmcp import Client
from fastmcp.client.auth import OAuth
from fastmcp.client.transports import SSETransport, StreamableHttpTransport


class CountingOAuth(OAuth):  # type: ignore[misc]
    """FastMCP's own, and how often it opened the browser."""

    visits = 0

    async def redirect_handler(self, authorization_url: str) -> None:
        """Open the browser."""
        self.visits += 1
        await super().redirect_handler(authorization_url)


async def visit(settings: dict[str, Any]) -> dict[str, Any]:
    """One client; returns what was seen."""
    seen: dict[str, Any] = {"protocolVersion": None, "results": [], "error": None}
    url = settings["url"]
    auth: Any = settings.get("token")
    if settings.get("browser"):
        os.environ["BROWSER"] = f"{shlex.join(settings['browser'])} %s &"
        auth = CountingOAuth()
    transport = SSETransport if url.endswith("/sse") else StreamableHttpTransport
    mode = "2026-07-28" if settings.get("modern") else "legacy"
    try:
        client = Client(transport(url, auth=auth), mode=mode)
        async with asyncio.timeout(settings["patience"]), client:
            seen["protocolVersion"] = client.protocol_version
            for tool, arguments, pause in settings["calls"]:
                await asyncio.sleep(pause)
                called = await client.call_tool_mcp(tool, arguments)
                seen["results"].append(called.content[0].text)
    except Exception as error:
        seen["error"] = "; ".join(causes(error))
    tokens = auth.context.current_tokens if isinstance(auth, OAuth) else None
    return {**seen, "visits": getattr(auth, "visits", 0), "scope": tokens and tokens.scope}


async def main(visits: dict[str, Any]) -> None:
    """All of them."""
    seen = await asyncio.gather(*map(visit, visits.values()))
    print(json.dumps(dict(zip(visits, seen, strict=True))))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
