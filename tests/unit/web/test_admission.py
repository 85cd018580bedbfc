"""Requests of twisted.web on their way to a resource, before and after they are admitted."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.test.requesthelper import DummyRequest

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.failed_attempts import FailedAttempts
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.errors import InvalidToken
from mcpbridge.web.admission import Admission, AdmittedResource, end_of
from mcpbridge.web.refusals import Delays

ACCESS = Access(Identity(issuer="i", subject="alice"))


class Transport:
    """A transport whose other end has this address."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer

    def getPeer(self) -> Any:
        return self._peer


class Channel:
    """A connection; a fast one knows as what a request was `admitted` that it hands over."""

    def __init__(self, peer: Any = None, admitted: Access | None = None) -> None:
        self.transport = Transport(peer or IPv4Address("TCP", "192.0.2.1", 1))
        if admitted is not None:
            self.admitted = admitted


class Request(DummyRequest):
    """A request that is not sent."""

    access: Access
    startedWriting = 0

    def __init__(self, channel: Any = None) -> None:
        super().__init__([b"mcp"])
        self.channel = channel or Channel()
        self.code = 200

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        self.code = code


class Leaf(Resource):
    """A resource that returns a body, and remembers what it got."""

    isLeaf = True

    def __init__(self, body: Any = b"body") -> None:
        super().__init__()
        self.body = body
        self.seen: list[Access] = []

    def render(self, request: Any) -> Any:
        self.seen.append(request.access)
        if isinstance(self.body, Exception):
            raise self.body
        return self.body


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (IPv4Address("TCP", "192.0.2.1", 1), "192.0.2.1"),
        (UNIXAddress(b"/x"), "unix"),
        (object(), None),
    ],
)
def test_who_is_at_the_other_end(peer: Any, address: str | None) -> None:
    assert end_of(Transport(peer))[0] == address
    assert end_of(Transport(peer))[1] is None


class Recorder:
    """An authenticator that remembers requests."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def authenticate(self, request: Any) -> Identity:
        self.requests.append(request)
        return Identity(issuer="i", subject="alice")


def test_everybody_is_admitted_without_access_control() -> None:
    assert Admission("s", None).admit(Request()) is ANYBODY


def test_access_control_sees_the_request() -> None:
    recorder = Recorder()
    control = AccessControl("s", [recorder], rules=ScopeRules(), clock=Clock())
    request = Request()
    request.method, request.uri = b"PUT", b"/x?y"
    request.requestHeaders.setRawHeaders(b"x-a", [b"1", b"2"])
    admitted = Admission("s", control).admit(request)
    assert isinstance(admitted, Access)
    assert admitted.name == "i#alice"
    [seen] = recorder.requests
    assert (seen.server, seen.method, seen.uri, seen.address) == ("s", "PUT", "/x?y", "192.0.2.1")
    assert seen.values("x-a") == ["1", "2"]


def test_authenticators_see_whose_share_a_request_takes() -> None:
    recorder, clock = Recorder(), Clock()
    control = AccessControl("s", [recorder], rules=ScopeRules(), decisive=None, clock=clock)
    delays = Delays(FailedAttempts(clock), clock, lambda request: "203.0.113.9")
    for each in (delays, None):
        Admission("s", control, each).admit(Request())
    assert [seen.share for seen in recorder.requests] == ["203.0.113.9", None]


def test_what_the_fast_path_has_admitted_is_not_asked_about_again() -> None:
    recorder = Recorder()
    control = AccessControl("s", [recorder], rules=ScopeRules(), clock=Clock())
    assert Admission("s", control).admit(Request(Channel(admitted=ACCESS))) is ACCESS
    assert not recorder.requests


def test_a_request_without_a_connection_is_over() -> None:
    control = AccessControl("s", [], rules=ScopeRules(), clock=Clock())
    request = Request()
    request.channel = None
    with pytest.raises(CancelledError):
        Admission("s", control).admit(request)


def render(admit: Any, leaf: Leaf, request: Request) -> bytes:
    """Render, and return what was written; the response must be complete."""
    body = AdmittedResource(admit, leaf).render(request)
    if body is not NOT_DONE_YET:
        return bytes(body)
    assert request.finished == 1
    return b"".join(request.written)


@pytest.mark.parametrize("admit", [lambda _: ACCESS, lambda _: succeed(ACCESS)])
def test_an_admitted_request_gets_to_the_resource(admit: Any) -> None:
    leaf, request = Leaf(), Request()
    assert render(admit, leaf, request) == b"body"
    assert leaf.seen == [ACCESS]


def test_a_resource_may_need_time_after_admission_too() -> None:
    leaf, request = Leaf(NOT_DONE_YET), Request()
    assert AdmittedResource(lambda _: succeed(ACCESS), leaf).render(request) is NOT_DONE_YET
    assert (request.finished, request.written) == (0, [])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidToken("no"), 401), (ValueError("no"), 500), (CancelledError(), 500)],
)
def test_one_that_is_not_gets_an_error(
    late: bool, error: Exception, status: int, logged_failures: list[Any]
) -> None:
    def admit(_: object) -> Any:
        if late:
            failed: Deferred[Access] = Deferred()
            failed.errback(error)
            return failed
        raise error

    leaf, request = Leaf(), Request()
    assert b'"error"' in render(admit, leaf, request)
    assert request.code == status
    assert not leaf.seen
    assert bool(logged_failures) == (status == 500)


def test_a_resource_that_fails_after_a_wait_is_answered(logged_failures: list[Any]) -> None:
    request = Request()
    body = render(lambda _: succeed(ACCESS), Leaf(ValueError("secret")), request)
    assert request.code == 500
    assert b"secret" not in body
    assert [each.type for each in logged_failures] == [ValueError]


def test_a_client_that_leaves_cancels_and_is_not_served() -> None:
    waiting: Deferred[Access] = Deferred(lambda each: each.callback(ACCESS))
    leaf, request = Leaf(), Request()
    AdmittedResource(lambda _: waiting, leaf).render(request)
    request.channel = None
    request.processingFailed(CancelledError())
    assert not leaf.seen
    assert not request.written
