"""
Keys of a real authorization server are rotated, and it is away, while clients with its tokens
are at work.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.authorized import ALICE, BRIDGE, READ, SERVERS, bridged, new_site
from tests.e2e.stateless import PREFIX, VERSION
from tests.real.bridge import PATIENCE
from tests.real.processes import eventually
from tests.real.provider import Provider, free_port, new_key, providing

pytestmark = pytest.mark.slow

#: Clients at work at once, half of them with a session.
CLIENTS = 4
#: Tokens of a stage: as many as requests, so that none is known already.
TOKENS = 40

ACCEPT = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
CALL: dict[str, Any] = {"name": "echo", "arguments": {"text": "hello"}}


class Load:
    """
    Clients that call a tool again and again: with each token that is put into `tokens` once,
    and then with the last ones over and over.
    """

    def __init__(self, url: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.tokens: deque[str] = deque()
        self.failures: list[str] = []
        self._parts = urlsplit(url)
        self._over = threading.Event()
        self._changing = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Work while the block runs."""
        with ThreadPoolExecutor(CLIENTS) as threads:
            works = (self._work_in_session, self._work_without)
            going = [threads.submit(works[number % 2]) for number in range(CLIENTS)]
            try:
                yield
            finally:
                self._over.set()
        for each in going:
            each.result()

    def use(self, tokens: Iterable[str]) -> None:
        """Put new tokens in the place of those that were used."""
        with self._changing:
            self.tokens = deque(tokens)

    def wait(self) -> None:
        """Wait until each token has been used."""
        wanted = sum(self.statuses.values()) + len(self.tokens)
        going_on = eventually(lambda: sum(self.statuses.values()) > wanted, PATIENCE)
        assert going_on, f"the clients are stuck: {self.statuses}"

    def _work_in_session(self) -> None:
        with self._connection() as connection:
            initialize = {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "load", "version": "1"},
            }
            ident = self._post(connection, "initialize", initialize, {}).getheader("Mcp-Session-Id")
            assert ident is not None
            while not self._over.is_set():
                self._post(connection, "tools/call", CALL, {"Mcp-Session-Id": ident})

    def _work_without(self) -> None:
        meta = {
            f"{PREFIX}protocolVersion": VERSION,
            f"{PREFIX}clientInfo": {"name": "load", "version": "1"},
            f"{PREFIX}clientCapabilities": {},
        }
        fields = {
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/call",
            "Mcp-Name": CALL["name"],
        }
        with self._connection() as connection:
            while not self._over.is_set():
                self._post(connection, "tools/call", {**CALL, "_meta": meta}, fields)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        host, port = self._parts.hostname or "", self._parts.port
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as each:
            yield each

    def _post(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        params: object,
        fields: dict[str, str],
    ) -> http.client.HTTPResponse:
        with self._changing:
            token = self.tokens[0]
            self.tokens.rotate(-1)
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {**ACCEPT, **fields, "Authorization": f"Bearer {token}"}
        connection.request("POST", self._parts.path, json.dumps(message), headers)
        response = connection.getresponse()
        body = response.read()
        self.statuses[response.status] += 1
        if response.status != 200:
            self.failures.append(f"{response.status}: {body[:200]!r}")
        return response


def tokens(provider: Provider, url: str) -> list[str]:
    return [provider.token(ALICE, url, READ) for _ in range(TOKENS)]


def test_nobody_is_refused_while_keys_are_rotated(tmp_path: Path) -> None:
    """A new key is published before it signs, and an old one as long as its tokens are used."""
    site, port = new_site(), free_port()
    url, known = site.url("jwt"), site.resources(SERVERS)
    old, new = new_key("old"), new_key("new")
    load = Load(url)
    with contextlib.ExitStack() as stack:
        issuer = f"http://127.0.0.1:{port}"
        stack.enter_context(bridged(tmp_path, site, issuer, ["jwt"]))
        for keys in ([old, new], [new, old], [new]):
            with providing(known, [ALICE, BRIDGE], keys, port) as provider:
                assert provider.issuer == issuer
                load.use(tokens(provider, url))
                if not load.statuses:
                    stack.enter_context(load.running())
                load.wait()
                unused = tokens(provider, url)
            # It is away now: known keys go on, also for tokens that were not seen before.
            load.use(unused)
            load.wait()
    assert set(load.statuses) == {200}, load.failures
