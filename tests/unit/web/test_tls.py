"""TLS of a listener, without sockets: client certificates, and files that change."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.tuning import (
    CERTIFICATE_CHECK_SECONDS,
    CERTIFICATE_FILE_BYTES,
    COMPLAIN_SECONDS,
)
from mcpbridge.web.tls import ReloadedCertificates, Stamp, TlsFiles, client_certificate, stamp_of
from tests.certificates import DAY, SERVER, Authority, Pair
from tests.tls import InMemory, TlsClient

CA = Authority("Servers")
#: Authorities of client certificates, and one below another.
ROOT = Authority("Clients")
BRANCH = Authority("Branch", above=ROOT)
OTHER_BRANCH = Authority("Other branch", above=ROOT)
FIRST = CA.issue("first", usage=SERVER)
SECOND = CA.issue("second", usage=SERVER)


class Server:
    """A listener's files and what is made of them."""

    def __init__(
        self,
        folder: Path,
        client_ca: bytes | None = None,
        stamp: Callable[[str], Stamp] = stamp_of,
    ) -> None:
        self.certificate, self.key = FIRST.write(folder)
        self.client_ca = folder / "clients.pem"
        if client_ca is not None:
            self.client_ca.write_bytes(client_ca)
        self.clock = Clock()
        self.certificates = ReloadedCertificates(
            TlsFiles(
                certificate=str(self.certificate),
                key=str(self.key),
                client_ca=None if client_ca is None else str(self.client_ca),
            ),
            self.clock,
            stamp,
        )

    def connect(self, pair: Pair | None = None, **client: Any) -> InMemory:
        return InMemory.of(self.certificates, TlsClient(CA, pair, **client))

    def check(self) -> None:
        """Have the next connection check the files."""
        self.clock.advance(CERTIFICATE_CHECK_SECONDS)

    @property
    def shown(self) -> x509.Certificate:
        """The certificate that a new connection gets."""
        return self.connect().shown


def test_connection_is_served_with_modern_tls_and_http_1_1(tmp_path: Path) -> None:
    connection = Server(tmp_path).connect()
    assert connection.accepted
    assert connection.shown == FIRST.certificate
    assert connection.client.negotiatedProtocol == b"http/1.1"


def test_chain_is_sent_with_the_certificate(tmp_path: Path) -> None:
    server = Server(tmp_path)
    below = Authority("Below", above=CA).issue("third", usage=SERVER)
    below.write(tmp_path)
    server.check()
    # The client does not know the authority between.
    assert server.connect().accepted


@pytest.mark.parametrize(
    ("newest", "accepted"),
    [(SSL.TLS1_1_VERSION, False), (SSL.TLS1_2_VERSION, True), (SSL.TLS1_3_VERSION, True)],
)
def test_versions_before_tls_1_2_are_refused(tmp_path: Path, newest: int, accepted: bool) -> None:
    connection = Server(tmp_path).connect(newest=newest)
    assert connection.accepted is accepted


def test_client_of_other_protocols_is_refused(tmp_path: Path) -> None:
    assert not Server(tmp_path).connect(protocols=(b"h2",)).accepted


@pytest.mark.parametrize("newest", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize(
    ("pair", "authority"),
    [
        (ROOT.issue("alice"), ROOT.pem),
        (BRANCH.issue("alice"), ROOT.pem),
        (BRANCH.issue("alice"), BRANCH.pem),
        (OTHER_BRANCH.issue("alice"), BRANCH.pem + OTHER_BRANCH.pem),
    ],
)
def test_client_certificate_of_an_authority_is_accepted(
    tmp_path: Path, newest: int, pair: Pair, authority: bytes
) -> None:
    """An authority that is not a root may be given alone."""
    connection = Server(tmp_path, authority).connect(pair, newest=newest)
    assert connection.accepted
    assert client_certificate(connection.server) == pair.der


@pytest.mark.parametrize("newest", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize(
    "pair",
    [
        CA.issue("alice"),
        ROOT.issue("alice"),
        OTHER_BRANCH.issue("alice"),
        BRANCH.issue("alice", usage=SERVER),
        BRANCH.issue("alice", until=datetime.now(UTC) - DAY),
        BRANCH.issue("alice", until=datetime.now(UTC) + 40 * DAY),
        # Not an authority, and used as one.
        Authority("Branch", above=ROOT).issue("alice"),
    ],
    ids=["stranger", "root", "other branch", "server", "expired", "future", "namesake"],
)
def test_wrong_client_certificate_fails_the_handshake(
    tmp_path: Path, newest: int, pair: Pair
) -> None:
    connection = Server(tmp_path, BRANCH.pem).connect(pair, newest=newest)
    assert not connection.accepted
    assert client_certificate(connection.server) is None


def test_client_without_a_certificate_is_accepted(tmp_path: Path) -> None:
    """It may have a token instead."""
    connection = Server(tmp_path, ROOT.pem).connect()
    assert connection.accepted
    assert client_certificate(connection.server) is None


def test_client_is_asked_for_a_certificate_only_with_an_authority(tmp_path: Path) -> None:
    connection = Server(tmp_path).connect(ROOT.issue("alice"))
    assert connection.accepted
    assert client_certificate(connection.server) is None


def test_certificate_is_found_behind_wrappers(tmp_path: Path) -> None:
    class Wrapper:
        def __init__(self, transport: object) -> None:
            self.transport = transport

    pair = ROOT.issue("alice")
    connection = Server(tmp_path, ROOT.pem).connect(pair)
    assert client_certificate(Wrapper(Wrapper(connection.server))) == pair.der
    for plain in (None, object(), StringTransport(), Wrapper(StringTransport())):
        assert client_certificate(plain) is None


def test_lost_connection_has_no_certificate(tmp_path: Path) -> None:
    connection = Server(tmp_path, ROOT.pem).connect(ROOT.issue("alice"))
    connection.server.connectionLost(connection.client.wrappedProtocol.lost)
    assert client_certificate(connection.server) is None


def test_new_files_are_used_at_the_next_check(tmp_path: Path, log_lines: list[str]) -> None:
    """A connection that comes before certificate_check_seconds are over gets the former."""
    server = Server(tmp_path)
    assert server.shown == FIRST.certificate
    SECOND.write(tmp_path)
    server.clock.advance(CERTIFICATE_CHECK_SECONDS / 2)
    assert server.shown == FIRST.certificate
    server.clock.advance(CERTIFICATE_CHECK_SECONDS / 2)
    assert server.shown == SECOND.certificate
    assert log_lines == [f"TLS: {server.certificate} has changed and is used for new connections"]


def test_turned_link_is_noticed(tmp_path: Path) -> None:
    """As certbot turns its links, to files that may be older."""
    (tmp_path / "2").mkdir()
    certificate, key = SECOND.write(tmp_path / "2")
    for each in (certificate, key):
        os.utime(each, (1, 1))
    server = Server(tmp_path)
    assert server.shown == FIRST.certificate
    for link, target in ((server.certificate, certificate), (server.key, key)):
        turned = tmp_path / "turned"
        turned.symlink_to(target)
        turned.replace(link)
    server.check()
    assert server.shown == SECOND.certificate


def test_authorities_are_read_again_too(tmp_path: Path) -> None:
    server = Server(tmp_path, BRANCH.pem)
    alice, bob = BRANCH.issue("alice"), OTHER_BRANCH.issue("bob")
    assert server.connect(alice).accepted
    server.client_ca.write_bytes(OTHER_BRANCH.pem)
    server.check()
    assert not server.connect(alice).accepted
    assert server.connect(bob).accepted


def test_half_written_pair_waits_for_its_other_half(tmp_path: Path, log_lines: list[str]) -> None:
    server = Server(tmp_path)
    server.certificate.write_bytes(SECOND.pem)
    server.check()
    assert server.shown == FIRST.certificate
    [line] = log_lines
    assert line == (
        "TLS: the files have changed and cannot be used; new connections get the former"
        f" certificate: the key in {server.key} is not that of the first certificate in"
        f" {server.certificate}"
    )
    server.key.write_bytes(SECOND.key_pem)
    server.check()
    assert server.shown == SECOND.certificate


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


Breakage = tuple[str, Callable[[Path], Any], str]
BROKEN: dict[str, Breakage] = {
    "no certificate": ("certificate", Path.unlink, "No such file"),
    "no key": ("key", Path.unlink, "No such file"),
    "empty certificate": ("certificate", lambda p: p.write_bytes(b""), "no certificate in PEM"),
    "empty key": ("key", lambda p: p.write_bytes(b""), "no private key in PEM"),
    "no authorities": ("client_ca", lambda p: p.write_bytes(b"x"), "no certificate in PEM"),
    "cut certificate": (
        "certificate",
        lambda p: p.write_bytes(FIRST.pem[:-40]),
        "no certificate in PEM, or a broken one",
    ),
    "cut key": ("key", lambda p: p.write_bytes(FIRST.key_pem[:-40]), "no private key in PEM"),
    "DER": ("certificate", lambda p: p.write_bytes(FIRST.der), "no certificate in PEM"),
    "other key": ("key", lambda p: p.write_bytes(SECOND.key_pem), "is not that of the first"),
    "chain first": (
        "certificate",
        lambda p: p.write_bytes(CA.pem + FIRST.pem),
        "is not that of the first",
    ),
    "passphrase": ("key", lambda p: p.write_bytes(FIRST.encrypted_key_pem), "has a passphrase"),
    "pipe": ("key", make_pipe, "no regular file"),
    "directory": ("certificate", make_directory, "Is a directory"),
    "endless": ("certificate", lambda p: os.truncate(p, CERTIFICATE_FILE_BYTES + 1), "more than"),
}


@pytest.mark.parametrize(("which", "damage", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_an_error_at_the_start(
    tmp_path: Path, which: str, damage: Callable[[Path], Any], says: str
) -> None:
    """Up to certificate_file_bytes are read of each."""
    server = Server(tmp_path, ROOT.pem)
    damage(getattr(server, which))
    files = TlsFiles(
        certificate=str(server.certificate), key=str(server.key), client_ca=str(server.client_ca)
    )
    with pytest.raises((ValueError, OSError), match=says):
        ReloadedCertificates(files, Clock())


@pytest.mark.parametrize(("which", "damage", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_leave_the_former_ones_in_use(
    tmp_path: Path,
    log_lines: list[str],
    which: str,
    damage: Callable[[Path], Any],
    says: str,
) -> None:
    """The log says so once in complain_seconds, and where the mistake is."""
    server = Server(tmp_path, ROOT.pem)
    path = getattr(server, which)
    damage(path)
    for _ in range(3):
        server.check()
        assert server.shown == FIRST.certificate
    [line] = log_lines
    assert says in line
    assert str(path) in line
    assert "PRIVATE" not in line
    server.clock.advance(COMPLAIN_SECONDS)
    assert server.shown == FIRST.certificate
    assert len(log_lines) == 2
    assert log_lines[1].endswith("(3 times since it was last logged)")


def test_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    server = Server(tmp_path)
    SECOND.write(tmp_path)
    with server.certificate.open("ab") as file:
        file.write(b"\n" * (CERTIFICATE_FILE_BYTES - len(SECOND.pem)))
    server.check()
    assert server.shown == SECOND.certificate


def test_files_that_are_whole_again_are_used(tmp_path: Path, log_lines: list[str]) -> None:
    """Although their time stamps tell nothing: after a failure they are read at each check."""
    server = Server(tmp_path, stamp=lambda path: None)
    server.key.unlink()
    for _ in range(3):
        server.check()
        assert server.shown == FIRST.certificate
    SECOND.write(tmp_path)
    server.check()
    assert server.shown == SECOND.certificate
    assert len(log_lines) == 2


def test_second_change_within_a_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    """The time stamps do not tell; unchanged files are read once more, and then no longer."""
    tick = 0

    def stamp(path: str) -> Stamp:
        return (1, 1, 1, tick, tick)

    server = Server(tmp_path, stamp=stamp)
    server.check()
    assert server.shown == FIRST.certificate
    tick += 1
    server.check()
    assert server.shown == FIRST.certificate
    SECOND.write(tmp_path)
    server.check()
    assert server.shown == SECOND.certificate
    FIRST.write(tmp_path)
    server.check()
    assert server.shown == SECOND.certificate


def test_key_and_certificate_may_be_in_one_file(tmp_path: Path) -> None:
    for order in (FIRST.pem + FIRST.key_pem, FIRST.key_pem + FIRST.pem):
        both = tmp_path / "both.pem"
        both.write_bytes(order)
        files = TlsFiles(certificate=str(both), key=str(both))
        connection = InMemory.of(ReloadedCertificates(files, Clock()), TlsClient(CA))
        assert connection.shown == FIRST.certificate
