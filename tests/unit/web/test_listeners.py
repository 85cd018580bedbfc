"""Endpoint descriptions become Twisted endpoints: defaults, and errors that name the mistake."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import endpoints, tcp
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor, MemoryReactorClock
from twisted.python.systemd import ListenFDs

from mcpbridge.config.tuning import BACKLOG, COMPLAIN_SECONDS
from mcpbridge.web import listeners
from mcpbridge.web.listeners import AcceptErrors, make_endpoint
from tests.certificates import SERVER, Authority
from tests.tls import InMemory, Recorded, TlsClient


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


CA = Authority("Servers")
PAIR = CA.issue("server", usage=SERVER)


@pytest.fixture
def paths(tmp_path: Path) -> str:
    """Return the options that name a certificate and its key, at a path with special characters."""
    folder = tmp_path / "a=b:c\\d"
    folder.mkdir()
    certificate, key = (quoteStringArgument(str(each)) for each in PAIR.write(folder))
    return f"certificate={certificate}:key={key}"


@pytest.mark.parametrize(
    ("description", "port", "interface", "backlog"),
    [
        ("https:1:PATHS", 1, "", BACKLOG),
        ("https:PATHS:port=1:interface=127.0.0.1:backlog=7", 1, "127.0.0.1", 7),
        ("https:1:127.0.0.1:7:PATHS", 1, "127.0.0.1", 7),
        (r"https:1:interface=\:\:1:PATHS", 1, "::1", BACKLOG),
    ],
)
def test_https_listens_like_tcp(
    paths: str, description: str, port: int, interface: str, backlog: int
) -> None:
    reactor: Any = MemoryReactor()
    make_endpoint(reactor, description.replace("PATHS", paths)).listen(Factory())
    [listener] = reactor.tcpServers
    assert (listener[0], listener[2], listener[3]) == (port, backlog, interface)


def test_https_serves_its_certificate(paths: str) -> None:
    reactor: Any = MemoryReactorClock()
    make_endpoint(reactor, f"https:1:{paths}").listen(Factory.forProtocol(Recorded))
    [listener] = reactor.tcpServers
    connection = InMemory(listener[1], TlsClient(CA), reactor)
    assert connection.shown == PAIR.certificate


def test_certificate_may_hold_its_key(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(PAIR.pem + PAIR.key_pem)
    make_endpoint(MemoryReactor(), f"https:1:certificate={both}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("", "needs `certificate=PATH`"),
        ("key=x", "needs `certificate=PATH`"),
        ("certificate=", "needs `certificate=PATH`"),
        ("certificate=x:key=", "are paths"),
        ("certificate=/nowhere/x.pem", "No such file.*/nowhere/x.pem"),
        ("PATHS:clientCA=/nowhere/ca.pem", "No such file.*/nowhere/ca.pem"),
        ("PATHS:clientCA=", "are paths"),
        ("PATHS:privateKey=x", "privateKey"),
    ],
)
def test_invalid_https_description_names_the_mistake(paths: str, options: str, says: str) -> None:
    with pytest.raises((ValueError, TypeError, OSError), match=says):
        make_endpoint(MemoryReactor(), f"https:1:{options}".replace("PATHS", paths))


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


@pytest.mark.parametrize("description", ["ssl:8443", "https:8443:PATHS"])
def test_tls_without_pyopenssl_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, paths: str, description: str
) -> None:
    monkeypatch.setitem(sys.modules, "OpenSSL.crypto", None)
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    monkeypatch.delitem(sys.modules, "twisted.internet.ssl", raising=False)
    monkeypatch.delattr("twisted.internet.ssl", raising=False)
    with pytest.raises(ValueError, match=r"OpenSSL.*; TLS needs `pip install 'mcpbridge\[tls\]'`"):
        make_endpoint(MemoryReactor(), description.replace("PATHS", paths))


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


# Inherited sockets.


@pytest.mark.parametrize(
    ("description", "why"),
    [
        ("systemd:domain=INET:index=0", "systemd has passed no socket with a name: start the"),
        ("systemd:domain=UNIX:name=web", "`systemd-socket-activate --fdname=NAME -l ADDRESS"),
    ],
)
def test_no_inherited_socket(description: str, why: str) -> None:
    """A description is good before there is a socket: it may be checked by another process."""
    endpoint = make_endpoint(MemoryReactor(), description)
    with pytest.raises(ValueError, match=re.escape(why)):
        endpoint.listen(Factory())


@pytest.mark.parametrize("which", ["index=2", "name=admin"])
def test_another_inherited_socket(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    passed = ListenFDs([3, 4], ("web", "other"))
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", passed)
    endpoint = make_endpoint(MemoryReactor(), f"systemd:domain=INET:{which}")
    with pytest.raises(ValueError, match=r"^systemd has passed 2 sockets: 'web', 'other'$"):
        endpoint.listen(Factory())


@pytest.mark.parametrize("which", ["index=1", "name=other"])
def test_inherited_socket_is_adopted(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    passed = ListenFDs([3, 4], ("web", "other"))
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", passed)
    adopted: list[int] = []

    class Adopting:
        def __init__(self, reactor: object, descriptor: int, family: int) -> None:
            adopted.append(descriptor)

        def listen(self, factory: object) -> None: ...

    monkeypatch.setattr(listeners, "AdoptedStreamServerEndpoint", Adopting)
    make_endpoint(MemoryReactor(), f"systemd:domain=INET6:{which}").listen(Factory())
    assert adopted == [4]


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("", "one of INET, INET6, UNIX"),
        ("domain=IPX:index=0", "one of INET, INET6, UNIX"),
        ("domain=INET", "needs `name=NAME` or `index=NUMBER`"),
        ("domain=INET:index=0:name=web", "needs `name=NAME` or `index=NUMBER`"),
        ("domain=INET:index=0:backlog=5", "and no more"),
        ("domain=INET:index=-1", "the first of which is 0"),
    ],
)
def test_wrong_descriptions_of_inherited_sockets(rest: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        make_endpoint(None, f"systemd:{rest}")
