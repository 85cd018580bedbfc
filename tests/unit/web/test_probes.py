"""Health checks over HTTP: who is told what."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import IResource, Resource

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.health import BridgeHealth
from mcpbridge.web.access_log import AccessLog
from mcpbridge.web.probes import Probes
from mcpbridge.web.root import Branch, SecuredResource, Serving
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.transport_security import TransportSecurity


class Answering:
    """A server, as `BridgeHealth` and `is_ready` see it."""

    removed = stopping = False
    cannot_start: object = None
    failures = 0

    def __init__(self, name: str, base_uri: str | None = None, *, is_open: bool = True) -> None:
        base = f"/{name}" if base_uri is None else base_uri
        self.settings = ServerSettings(command="x", name=name, base_uri=base)
        self.is_open = is_open
        self.pool = self.backoff = self
        self.unclosed: set[Any] = set()


class Leaf(Resource):
    """What stands for the routes of a server."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return b"the server's own"


class Listener:
    """A site with health checks."""

    def __init__(self, *servers: Answering, all_names: bool = False) -> None:
        self.servers: Any = servers
        self.condition = "serving"
        clock = Clock()
        health = BridgeHealth(lambda: self.servers, lambda: self.condition, clock)
        settings = BridgeSettings(
            servers=(ServerSettings(command="x"),), allowed_hosts=("bridge.example.org",)
        )
        root = Branch()
        for each in servers:
            branch = root
            for segment in each.settings.base_uri.split("/")[1:]:
                branch = branch.branch(segment.encode())
            branch.serve(each.settings, Leaf())
        self.noted: list[Any] = []
        self.resource: IResource = SecuredResource(
            partial(
                Serving,
                TransportSecurity(settings),
                root,
                lambda request, refusal: self.noted.append(refusal),
                Probes(health, [each.settings for each in servers], all_names=all_names).find,
            )
        )
        self.mounted = Resource()
        self.mounted.putChild(b"mount", self.resource)
        self.settings, self.clock = settings, clock

    def get(
        self,
        target: str,
        method: str = "GET",
        *fields: str,
        host: str = "10.1.2.3:8080",
        mounted: bool = False,
    ) -> tuple[int, str, dict[str, str]]:
        """Return the status, the body and the headers of a response."""
        resource = self.mounted if mounted else self.resource
        site = BridgeSite(resource, self.clock, self.settings, seconds=lambda: 0.0)
        assert not isinstance(site.access_log, AccessLog)
        channel: Any = site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
        channel.dataReceived("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        head, _, body = transport.value().partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        return int(first.split()[1]), body.decode(), dict(each.split(": ", 1) for each in rest)

    def status(self, target: str, method: str = "GET", *fields: str, **more: Any) -> int:
        return self.get(target, method, *fields, **more)[0]


def test_a_health_check_is_one_line_that_nobody_keeps() -> None:
    listener = Listener(Answering("a"))
    for target, text in (("/livez", "ok\n"), ("/readyz", "ready\n"), ("/readyz/a", "ready\n")):
        status, body, headers = listener.get(target)
        assert (status, body) == (200, text)
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, body, headers = listener.get(target, "HEAD")
        assert (status, body) == (200, "")
        assert headers["Content-Length"] == str(len(text))


@pytest.mark.parametrize("target", ["/livez", "/readyz", "/readyz/a"])
@pytest.mark.parametrize("mounted", [False, True])
def test_a_slash_at_the_end_and_a_mount_change_nothing(target: str, mounted: bool) -> None:
    listener = Listener(Answering("a"))
    prefix = "/mount" if mounted else ""
    for end in ("", "/", "?x=1", "/?x=1"):
        assert listener.status(f"{prefix}{target}{end}", mounted=mounted) == 200


@pytest.mark.parametrize("target", ["/livez/x", "/readyz//", "/readyz/a/b", "/%FF", "/Livez", "//"])
def test_other_paths_are_none(target: str) -> None:
    listener = Listener(Answering("a"))
    assert listener.status(target, host="bridge.example.org") == 404
    assert listener.status(target) == 403, "only a health check has any Host"


def test_a_failing_server_turns_its_own_check_and_in_the_end_that_of_the_bridge() -> None:
    first, second = Answering("a"), Answering("b")
    listener = Listener(first, second)
    first.failures = 1
    assert listener.get("/readyz/a")[:2] == (503, "not ready\n")
    assert listener.status("/readyz/b") == 200
    assert listener.status("/readyz") == 200
    second.cannot_start = 1.0, "no such program"
    assert listener.status("/readyz") == 503
    assert listener.status("/livez") == 200
    first.failures = 0
    assert listener.status("/readyz") == 200


@pytest.mark.parametrize("condition", ["draining", "stopping"])
def test_nothing_is_ready_while_the_bridge_drains(condition: str) -> None:
    listener = Listener(Answering("a"))
    listener.condition = condition
    assert listener.status("/readyz") == 503
    assert listener.status("/readyz/a") == 503
    assert listener.status("/livez") == 200


def test_a_name_is_told_only_where_everybody_may_know_it() -> None:
    """A server with access control answers as one that does not exist."""
    servers = Answering("a"), Answering("secret", is_open=False)
    public, admin = Listener(*servers), Listener(*servers, all_names=True)
    assert public.get("/readyz/secret")[:2] == public.get("/readyz/nothing")[:2]
    assert public.status("/readyz/secret") == 404
    assert public.status("/readyz") == 200
    assert admin.status("/readyz/secret") == 200
    assert admin.status("/readyz/nothing") == 404


@pytest.mark.parametrize("target", ["/livez", "/readyz", "/readyz/a", "/readyz/unknown"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(target: str, method: str) -> None:
    status, _, headers = Listener(Answering("a")).get(target, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_paths_of_servers_come_first() -> None:
    listener = Listener(Answering("sse", ""), Answering("mcp", "/readyz"), Answering("x", "/livez"))
    own = (200, "the server's own")
    for target in ("/sse", "/readyz/mcp", "/readyz/sse", "/livez/mcp"):
        assert listener.get(target, host="bridge.example.org")[:2] == own
        assert listener.status(target) == 403
    for target in ("/livez", "/readyz", "/readyz/x"):
        assert listener.status(target) == 200
    assert not listener.get("/readyz/x/mcp", host="bridge.example.org")[1].startswith("ready")


def test_transport_security_holds_but_for_the_name_of_the_host() -> None:
    """What is refused is no attempt, and gets no record."""
    listener = Listener(Answering("a"))
    assert listener.status("/readyz", host="a b") == 400
    assert listener.status("/readyz", "GET", "Host: other") == 400
    elsewhere = "Sec-Fetch-Site: cross-site"
    assert listener.status("/readyz", "GET", elsewhere) == 403
    assert listener.status("/readyz", "GET", "Origin: https://evil.example") == 403
    assert listener.noted == []
    assert listener.status("/a/mcp", "GET", elsewhere) == 403
    assert len(listener.noted) == 1
