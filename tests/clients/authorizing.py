"""
Real clients on the official SDK in Python, with credentials: a token that they are given,
one that they get from an authorization server by themselves, or none.

    authorizing.py VISITS

VISITS is an object in JSON, with the settings of each of several clients that run at once,
by names: the `url`; `calls`, each a list of a tool, its arguments and the seconds to wait
before it; `token`, which is sent in a header, or `browser`, a command that opens the URL
added to it; `modern` for a client of 2026-07-28; and `patience`, the seconds for all of it.
Runs unchanged on both generations of the SDK.  Prints an object in JSON with what each has
seen, by the same names: `protocolVersion`, the `results` of the calls, how many `visits` of
the browser there were, the `scope` of the last token, and the `error` that ended it, or null.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mcp
from mcp import ClientSession
from mcp.client.auth import OAuthClientProvider
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared import auth as shared
from mcp.shared._httpx_utils import create_mcp_http_client


class Storage:
    """Keeps tokens and the client's registration in memory."""

    def __init__(self) -> None:
        self.tokens: Any = None
        self.client: Any = None

    async def get_tokens(self) -> Any:
        return self.tokens

    async def set_tokens(self, tokens: Any) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> Any:
        return self.client

    async def set_client_info(self, client_info: Any) -> None:
        self.client = client_info


class Callback:
    """Where the browser brings the code to, and what starts the browser."""

    def __init__(self, browser: list[str]) -> None:
        self.visits = 0
        self.url = ""
        self._browser = browser
        self._brought: asyncio.Queue[dict[str, list[str]]] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self._brought.put_nowait(parse_qs(urlsplit(target).query))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
        await writer.drain()
        writer.close()

    async def open(self, url: str) -> None:
        """Open a URL in the browser."""
        self.visits += 1
        await asyncio.create_subprocess_exec(*self._browser, url)

    async def wait(self) -> Any:
        """Return what the browser has brought."""
        brought = {name: values[0] for name, values in (await self._brought.get()).items()}
        if "error" in brought:
            raise RuntimeError(f"{brought['error']}: {brought.get('error_description')}")
        result = getattr(shared, "AuthorizationCodeResult", None)
        if result is None:
            return brought["code"], brought["state"]
        return result(code=brought["code"], state=brought["state"], iss=brought.get("iss"))


@contextlib.asynccontextmanager
async def connected(settings: dict[str, Any], provider: Any) -> AsyncIterator[Any]:
    """A connection to the server, over the transport of its URL."""
    url = settings["url"]
    token = settings.get("token")
    headers = {"Authorization": f"Bearer {token}"} if token else None
    if url.endswith("/sse"):
        async with sse_client(url, headers=headers, auth=provider) as streams:
            yield streams
    else:
        async with (
            create_mcp_http_client(headers=headers, auth=provider) as client,
            streamable_http_client(url, http_client=client) as streams,
        ):
            yield streams


@contextlib.asynccontextmanager
async def session(settings: dict[str, Any], provider: Any, seen: dict[str, Any]) -> Any:
    """A session, or a client that needs none."""
    if settings.get("modern"):
        transport = connected(settings, provider)
        async with mcp.Client(transport, mode="2026-07-28") as client:
            seen["protocolVersion"] = client.protocol_version
            yield client
    else:
        async with (
            connected(settings, provider) as (read, write, *_),
            ClientSession(read, write) as client,
        ):
            initialized = (await client.initialize()).model_dump(by_alias=True)
            seen["protocolVersion"] = initialized["protocolVersion"]
            yield client


def causes(error: BaseException) -> list[str]:
    """Return what is in a group of errors."""
    if isinstance(error, BaseExceptionGroup):
        return [each for one in error.exceptions for each in causes(one)]
    return [f"{type(error).__name__}: {error}"]


async def visit(settings: dict[str, Any]) -> dict[str, Any]:
    """One client; returns what was seen."""
    seen: dict[str, Any] = {"protocolVersion": None, "results": [], "error": None}
    callback, storage = Callback(settings.get("browser", [])), Storage()
    async with callback.listening():
        provider = None
        if settings.get("browser"):
            metadata = shared.OAuthClientMetadata(
                client_name="a test", redirect_uris=[callback.url]
            )
            provider = OAuthClientProvider(
                settings["url"], metadata, storage, callback.open, callback.wait
            )
        try:
            async with (
                asyncio.timeout(settings["patience"]),
                session(settings, provider, seen) as client,
            ):
                for tool, arguments, pause in settings["calls"]:
                    await asyncio.sleep(pause)
                    called = await client.call_tool(tool, arguments)
                    seen["results"].append(called.content[0].text)
        except Exception as error:
            seen["error"] = "; ".join(causes(error))
    return {**seen, "visits": callback.visits, "scope": storage.tokens and storage.tokens.scope}


async def main(visits: dict[str, Any]) -> None:
    """All of them."""
    seen = await asyncio.gather(*map(visit, visits.values()))
    print(json.dumps(dict(zip(visits, seen, strict=True))))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
