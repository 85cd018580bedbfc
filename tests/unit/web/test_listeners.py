"""Endpoint descriptions become Twisted endpoints: defaults, and errors that name the mistake."""

from __future__ import annotations

import errno
import sys
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor

from mcpbridge.config.tuning import BACKLOG, COMPLAIN_SECONDS
from mcpbridge.web.listeners import AcceptErrors, make_endpoint


@pytest.mark.parametrize(
    ("description", "backlog"),
    [
        ("tcp:1", BACKLOG),
        ("tcp:port=1:interface=127.0.0.1", BACKLOG),
        ("tcp6:1:interface=\\:\\:1", BACKLOG),
        ("unix:/nowhere/mcp.sock", BACKLOG),
        ("tcp:1:backlog=7", 7),
        ("tcp:1:127.0.0.1:7", 7),
        ("tcp6:1:7", 7),
    ],
)
def test_listeners_have_a_large_backlog(description: str, backlog: int) -> None:
    """Unless the description gives one."""
    reactor: Any = MemoryReactor()
    make_endpoint(reactor, description).listen(Factory())
    [listener] = reactor.tcpServers or reactor.unixServers
    assert listener[2] == backlog


@pytest.mark.parametrize(
    ("description", "error", "says"),
    [
        ("8808", ValueError, "a port alone; for this machine: `tcp:8808:interface=127.0.0.1`"),
        ("tcp", TypeError, "port"),
        ("tcp:x", ValueError, "invalid literal"),
        ("tcp:1:bogus=2", TypeError, "bogus"),
        ("carrier:1", ValueError, "Unknown endpoint type"),
    ],
)
def test_invalid_description_is_an_error_that_names_the_mistake(
    description: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make_endpoint(MemoryReactor(), description)


def test_tls_without_pyopenssl_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    monkeypatch.delitem(sys.modules, "twisted.internet.ssl", raising=False)
    monkeypatch.delattr("twisted.internet.ssl", raising=False)
    with pytest.raises(ValueError, match=r"OpenSSL.*; TLS needs `pip install 'mcpbridge\[tls\]'`"):
        make_endpoint(MemoryReactor(), "ssl:8443")


class Exhausted:
    """
    The socket of a listener in a process without free descriptors; it accepts `waiting` connections
    with the reserved one.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.error: int | None = None

    def accept(self) -> tuple[Any, Any]:
        if self.error is not None:
            error, self.error = self.error, None
            raise OSError(error, "no descriptors")
        if self.waiting:
            self.waiting -= 1
            return self, ("192.0.2.1", 1)
        raise OSError(errno.EAGAIN, "nobody waits")

    def close(self) -> None:
        """Close the connection."""


def test_lack_of_descriptors_is_logged_once_in_complain_seconds(log_lines: list[str]) -> None:
    """The line says what to do, and how many connections were closed."""
    clock = Clock()
    errors = AcceptErrors(clock)
    ports: list[Any] = [tcp.Port(0, Factory(), reactor=MemoryReactor()) for _ in range(2)]
    tcp._reservedFD.reserve()  # As each listener does when it starts.

    def run_out(port: Any, error: int, waiting: int) -> None:
        port.socket.error, port.socket.waiting, port.numberAccepts = error, waiting, 100
        port.doRead()

    for port in ports:
        errors.watch(port)
        port.socket = Exhausted()
    for waiting in (1, 2, 3):
        for port in ports:
            run_out(port, errno.EMFILE, waiting)
    run_out(ports[0], errno.ENFILE, 0)
    assert len(log_lines) == 1
    assert log_lines[0].startswith("connections cannot be accepted (EMFILE); 1 were closed")
    assert "raise the limit (ulimit -n, LimitNOFILE=)" in log_lines[0]
    clock.advance(COMPLAIN_SECONDS)
    run_out(ports[0], errno.ENFILE, 0)
    assert len(log_lines) == 2
    assert log_lines[1].startswith("connections cannot be accepted (ENFILE); 11 were closed")


def test_other_messages_of_a_listener_are_logged(log_lines: list[str]) -> None:
    """An object without such a logger is left alone."""
    port = tcp.Port(0, Factory(), reactor=MemoryReactor())
    errors = AcceptErrors(Clock())
    errors.watch(port)
    port._logger.info("something of {which}", which="its own")
    errors.watch(object())  # type: ignore[arg-type]
    assert log_lines == ["something of its own"]
