"""The one place that asks who has sent a request: whom it asks, what it remembers, what it says."""

from __future__ import annotations

import re
from math import inf, nan
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.access_control import (
    KNOWN_CALLERS,
    KNOWN_ENVIRONMENTS,
    SECRETS_SECONDS,
    UNCHECKED_SECONDS,
    AccessControl,
)
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.issuer import KEYS_REFETCH_SECONDS
from mcpbridge.auth.outbound import ANSWER_SECONDS
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.auth.resource_metadata import ProtectedResource
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.auth.session_environment import SessionEnvironment
from mcpbridge.config.env_from import EnvironmentRule
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import AUTHENTICATION_SECONDS, TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import (
    AuthenticationUnavailable,
    Forbidden,
    InsufficientScope,
    InvalidToken,
    MalformedCredentials,
    Unauthorized,
)
from mcpbridge.interfaces import IAuthenticator
from mcpbridge.mcp.operations import Operation

NOW = 1000.0
Fields = tuple[tuple[bytes, bytes], ...]


@implementer(IAuthenticator)
class Authenticator:
    """Returns or raises the same for each request, which it counts."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.requests: list[Any] = []

    def authenticate(self, request: Any) -> Any:
        self.requests.append(request)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome(request) if callable(self.outcome) else self.outcome


def identity(subject: str = "alice", **more: Any) -> Identity:
    return Identity(issuer="i", subject=subject, **more)


def bearer(token: bytes = b"x", uri: bytes = b"/mcp", **more: Any) -> AuthenticationRequest:
    fields = [(b"Authorization", b"Bearer " + token)]
    return AuthenticationRequest("s", b"POST", uri, fields, **more)


def anonymous(uri: bytes = b"/mcp") -> AuthenticationRequest:
    return AuthenticationRequest("s", b"POST", uri, [])


class World:
    """An access control, its clock, and its authenticators."""

    def __init__(self, *outcomes: Any, rules: ScopeRules | None = None, **more: Any) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.authenticators = [Authenticator(each) for each in outcomes]
        self.control = AccessControl(
            "s",
            self.authenticators,
            rules=rules or ScopeRules(),
            clock=self.clock,
            **more,
        )

    def admit(self, request: AuthenticationRequest | None = None) -> Access:
        """Return as what a request is admitted, which is known at once."""
        admitted = self.control.admit(request or bearer())
        return admitted if isinstance(admitted, Access) else now(admitted)

    @property
    def asked(self) -> list[int]:
        """How often each authenticator was asked."""
        return [len(each.requests) for each in self.authenticators]


def now(deferred: Deferred[Access]) -> Access:
    """Return the result of a Deferred that has fired; raise its failure."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    [result] = results
    if isinstance(result, Access):
        return result
    raise result.value


# Whom it asks.


def test_the_first_authenticator_that_knows_the_caller_counts() -> None:
    world = World(None, identity("alice"), identity("bob"))
    assert world.admit().name == "i#alice"
    assert world.asked == [1, 1, 0]


def nobody_later(_: object) -> Deferred[None]:
    return succeed(None)


@pytest.mark.parametrize("first", [None, nobody_later])
@pytest.mark.parametrize("second", [None, nobody_later])
@pytest.mark.parametrize("third", [identity(), lambda _: succeed(identity())])
def test_some_are_asked_later(first: Any, second: Any, third: Any) -> None:
    world = World(first, second, third)
    assert world.admit().name == "i#alice"
    assert world.asked == [1, 1, 1]


def test_what_an_authenticator_sees() -> None:
    world = World(identity())
    request = bearer(address="192.0.2.1", certificate=b"der")
    world.admit(request)
    assert world.authenticators[0].requests == [request]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (anonymous(), Unauthorized, "needs credentials"),
        (bearer(), InvalidToken, "unknown"),
    ],
)
def test_a_caller_whom_nobody_knows(
    late: bool, request_: AuthenticationRequest, error: type[Unauthorized], text: str
) -> None:
    world = World(None, (lambda _: succeed(None)) if late else None)
    with pytest.raises(error, match=text) as raised:
        world.admit(request_)
    assert type(raised.value) is error


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        InvalidToken("no"),
        Forbidden("no"),
        AuthenticationUnavailable("no"),
        ValueError("no"),
        CancelledError(),
    ],
)
def test_the_error_of_an_authenticator_is_the_answer(late: bool, error: Exception) -> None:
    """No other one is asked: credentials that are wrong for one are wrong."""
    world = World((lambda _: fail(error)) if late else error, identity())
    with pytest.raises(type(error)):
        world.admit()
    assert world.asked[1] == 0
    with pytest.raises(type(error)):
        world.admit()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("odd", [True, "alice", 1, b"alice", {"subject": "alice"}, object()])
def test_what_is_no_identity_lets_nobody_in(late: bool, odd: Any) -> None:
    world = World((lambda _: succeed(odd)) if late else odd)
    for _ in range(2):
        with pytest.raises(AttributeError):
            world.admit()


def test_an_authenticator_is_not_asked_about_malformed_credentials() -> None:
    world = World(identity())
    two = AuthenticationRequest("s", b"POST", b"/", [(b"authorization", b"Bearer x")] * 2)
    for request in (two, bearer(uri=b"/mcp?access_token=x"), bearer(b"x y")):
        with pytest.raises(MalformedCredentials):
            world.admit(request)
        assert world.control.recall(request) is None
    assert world.asked == [0]


def test_a_deferred_is_cancelled_with_what_waits_for_it() -> None:
    cancelled: list[Any] = []
    world = World(lambda _: Deferred(cancelled.append))
    admitted = world.control.admit(bearer())
    assert isinstance(admitted, Deferred)
    admitted.cancel()
    with pytest.raises(CancelledError):
        now(admitted)
    assert len(cancelled) == 1


# Until when.


@pytest.mark.parametrize(
    ("expires_at", "recheck_at", "until", "fresh_until"),
    [
        (None, None, inf, inf),
        (1100.0, None, 1100 + TOKEN_LEEWAY_SECONDS, 1100 + TOKEN_LEEWAY_SECONDS),
        (1100.0, 1050.0, 1100 + TOKEN_LEEWAY_SECONDS, 1050.0),
        (1100.0, 2000.0, 1100 + TOKEN_LEEWAY_SECONDS, 1100 + TOKEN_LEEWAY_SECONDS),
        (None, 1050.0, 1050 + UNCHECKED_SECONDS, 1050.0),
        (9000.0, 1050.0, 1050 + UNCHECKED_SECONDS, 1050.0),
        (NOW - TOKEN_LEEWAY_SECONDS + 1, None, NOW + 1, NOW + 1),
    ],
)
def test_how_long_access_holds(
    expires_at: float | None, recheck_at: float | None, until: float, fresh_until: float
) -> None:
    found = World(identity(expires_at=expires_at, recheck_at=recheck_at)).admit()
    assert (found.until, found.fresh_until) == (until, fresh_until)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("expires_at", [NOW - TOKEN_LEEWAY_SECONDS, 0.0, -1.0, -inf, nan])
def test_an_identity_that_has_expired_is_refused(late: bool, expires_at: float) -> None:
    found = identity(expires_at=expires_at)
    world = World((lambda _: succeed(found)) if late else found)
    with pytest.raises(InvalidToken, match="expired"):
        world.admit()
    assert world.control.recall(bearer()) is None


def test_an_identity_without_a_time_to_ask_again_is_enough() -> None:
    class Plain:
        issuer, subject, scopes, expires_at = "i", "alice", frozenset({"s"}), None

    assert World(Plain()).admit().name == "i#alice"


# What it remembers.


def test_a_caller_is_asked_about_once() -> None:
    world = World(identity())
    first = world.admit()
    assert world.control.recall(bearer()) is first
    assert world.admit() is first
    assert world.asked == [1]


def test_what_was_found_out_later_is_remembered_too() -> None:
    world = World(lambda _: succeed(identity()))
    first = world.admit()
    assert world.admit() is first
    assert world.asked == [1]


def test_nothing_is_remembered_of_who_was_refused() -> None:
    world = World(None)
    for count in (1, 2):
        with pytest.raises(InvalidToken):
            world.admit()
        assert world.control.recall(bearer()) is None
        assert world.asked == [count]


def test_nothing_is_remembered_where_anything_may_decide() -> None:
    world = World(identity(), decisive=None)
    world.admit()
    assert world.control.recall(bearer()) is None
    world.admit()
    assert world.asked == [2]


@pytest.mark.parametrize(
    "other",
    [
        anonymous(),
        bearer(b"y"),
        bearer(b"X"),
        bearer(b"xx"),
        bearer(b"x "),
        bearer(address="192.0.2.2"),
        bearer(certificate=b"der"),
    ],
)
def test_another_head_is_another_caller(other: AuthenticationRequest) -> None:
    count = iter(range(100))
    world = World(lambda _: identity(str(next(count))))
    first = world.admit(bearer(address="192.0.2.1", certificate=b""))
    assert world.control.recall(other) is None
    assert world.admit(other).name != first.name


def test_a_field_that_does_not_decide_changes_nothing() -> None:
    world = World(identity())
    first = world.admit()
    fields = [(b"AUTHORIZATION", b"Bearer x"), (b"Mcp-Session-Id", b"1")]
    same = AuthenticationRequest("s", b"DELETE", b"/other", fields)
    assert world.control.recall(same) is first


def heads() -> list[Fields]:
    """Return the fields of requests whose values might be taken for each other's."""
    a, u = b"authorization", b"x-user"
    return [
        (),
        ((a, b""),),
        ((u, b""),),
        ((a, b""), (u, b"")),
        ((a, b"x-user"), (u, b"bob")),
        ((u, b"x-user"), (u, b"bob")),
        ((u, b"x-userbob"),),
        ((a, b"b"), (u, b"ob")),
        ((a, b"bo"), (u, b"b")),
        ((u, b"bob"), (u, b"x-user")),
        ((a, b"1"), (u, b"1")),
        ((a, b"11"),),
        ((a, b"3:bob"),),
        ((u, b"3:bob"),),
    ]


def test_no_two_heads_are_one_caller() -> None:
    """Each value counts with its length, and each field with the number of its values."""
    count = iter(range(100))
    world = World(lambda _: identity(str(next(count))), decisive=("authorization", "x-user"))
    for fields in heads():
        for certificate in (None, b"1:1", b"der"):
            for address in (None, "192.0.2.1"):
                request = AuthenticationRequest("s", b"POST", b"/", fields, address, certificate)
                assert world.control.recall(request) is None
                world.admit(request)


def test_a_caller_is_asked_about_again_when_access_is_not_fresh() -> None:
    count = iter(range(1, 100))
    world = World(lambda _: identity(recheck_at=NOW + 5 * next(count)))
    first = world.admit()
    world.clock.advance(4)
    assert world.control.recall(bearer()) is first
    world.clock.advance(1)
    assert world.control.recall(bearer()) is None
    assert world.admit() is not first
    assert world.asked == [2]


def test_what_is_forgotten_is_not_fresh_any_more() -> None:
    world = World(identity())
    first = world.admit()
    other = world.admit(bearer(b"y"))
    world.control.forget()
    assert (first.fresh_until, other.fresh_until) == (-inf, -inf)
    assert world.control.recall(bearer()) is None
    world.admit()
    assert world.asked == [3]


def test_the_oldest_of_too_many_callers_is_asked_about_again() -> None:
    """Beyond KNOWN_CALLERS; for all others nothing changes."""
    world = World(lambda request: identity(request.headers["authorization"]))
    tokens = [b"%d" % each for each in range(KNOWN_CALLERS)]
    found = [world.admit(bearer(each)) for each in tokens]
    assert all(world.control.recall(bearer(each)) for each in tokens)
    newest = world.admit(bearer(b"one-more"))
    assert world.control.recall(bearer(tokens[0])) is None
    # Whoever has kept it has to ask, too.
    assert found[0].fresh_until == -inf
    assert world.control.recall(bearer(tokens[1])) is found[1]
    assert world.control.recall(bearer(b"one-more")) is newest
    again = world.admit(bearer(tokens[0]))
    assert again.name == found[0].name
    assert again is not found[0]
    assert world.asked == [KNOWN_CALLERS + 2]


def test_one_that_is_admitted_twice_at_a_time_is_remembered_once() -> None:
    waiting: list[Deferred[Any]] = []

    def later(_: Any) -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    world = World(later)
    both = [world.control.admit(bearer()) for _ in range(2)]
    for each in waiting:
        each.callback(identity())
    first, second = (now(each) for each in both if isinstance(each, Deferred))
    assert world.control.recall(bearer()) is second
    assert first.fresh_until == -inf
    assert second.fresh_until == inf


# Scopes.

RULES = ScopeRules(
    {
        "*": "use",
        "tools/list": ["list", "offline_access"],
        "tools/call": {"add": "adder", "a*": ["a1", "a2"]},
    },
    {"admin": ["use", "adder"]},
)


@pytest.mark.parametrize(
    ("scopes", "operation", "missing"),
    [
        ({"use"}, ("ping", None), ()),
        ({"use"}, ("tools/list", None), ("use", "list", "offline_access")),
        ({"use", "list", "offline_access"}, ("tools/list", None), ()),
        ({"use"}, ("tools/call", "echo"), ()),
        ({"use"}, ("tools/call", "add"), ("use", "adder", "a1", "a2")),
        ({"admin", "a1"}, ("tools/call", "add"), ("use", "adder", "a1", "a2")),
        ({"admin", "a1", "a2"}, ("tools/call", "add"), ()),
    ],
)
def test_what_an_operation_needs(
    scopes: set[str], operation: tuple[str, str | None], missing: tuple[str, ...]
) -> None:
    """All scopes of the operation are in one challenge, also those that the caller has."""
    world = World(identity(scopes=frozenset(scopes)), rules=RULES)
    access = world.admit()
    if not missing:
        world.control.check_operations(access, [Operation(*operation)])
        return
    with pytest.raises(InsufficientScope) as raised:
        world.control.check_operations(access, [Operation("ping"), Operation(*operation)])
    assert set(raised.value.scopes) == set(missing)
    named = " ".join(each for each in raised.value.scopes if each != "offline_access")
    assert f'scope="{named}"'.encode() in raised.value.challenge


def test_no_operations_need_nothing() -> None:
    world = World(identity(scopes=frozenset({"use"})), rules=RULES)
    world.control.check_operations(world.admit(), [])
    World().control.check_operations(ANYBODY, [Operation("tools/call", "add")])


@pytest.mark.parametrize("late", [False, True])
def test_every_request_may_need_a_scope(late: bool) -> None:
    found = identity()
    world = World((lambda _: succeed(found)) if late else found, rules=RULES)
    for _ in range(2):
        with pytest.raises(InsufficientScope) as raised:
            world.admit()
        assert raised.value.challenge == (
            b'Bearer error="insufficient_scope", error_description="this needs the scopes: use",'
            b' scope="use"'
        )
    assert world.control.recall(bearer()) is None
    # That it is known is remembered.
    assert world.asked == [1]


# Challenges.


def resource(url: str = "https://mcp.example.org") -> ProtectedResource:
    settings = ServerSettings(command="x", base_uri="/b")
    return ProtectedResource(url, settings, ["https://login.example.org"])


def challenge_of(world: World, request: AuthenticationRequest) -> bytes:
    with pytest.raises(Unauthorized) as raised:
        world.admit(request)
    return raised.value.challenge


@pytest.mark.parametrize("late", [False, True])
def test_a_challenge_says_where_to_get_a_token(late: bool) -> None:
    world = World((lambda _: succeed(None)) if late else None, rules=RULES, resource=resource())
    metadata = b"https://mcp.example.org/.well-known/oauth-protected-resource/b"
    assert challenge_of(world, anonymous(b"/b/mcp?x")) == (
        b'Bearer resource_metadata="%b/mcp", scope="use"' % metadata
    )
    assert challenge_of(world, anonymous(b"/b/sse")) == (
        b'Bearer resource_metadata="%b/sse", scope="use"' % metadata
    )
    assert challenge_of(world, bearer(uri=b"/b/mcp/")) == (
        b'Bearer error="invalid_token", error_description="the token is unknown, or the'
        b' Authorization header has none", resource_metadata="%b/mcp", scope="use"' % metadata
    )


def test_a_challenge_without_anything_to_say() -> None:
    assert challenge_of(World(), anonymous()) == b"Bearer"


def test_a_description_has_no_character_that_ends_it() -> None:
    world = World(InvalidToken('a "quoted" \\ text\r\nX: y caf\u00e9'))
    challenge = challenge_of(world, bearer())
    assert challenge == (
        b"Bearer error=\"invalid_token\", error_description=\"a 'quoted' ' text''X: y caf'\""
    )
    assert re.fullmatch(rb"[ -~]*", challenge)


# What is remembered of a caller.


def with_variables(value: bytes) -> AuthenticationRequest:
    fields = [(b"Authorization", b"Bearer x"), (b"X-Key", value)]
    return AuthenticationRequest("s", b"POST", b"/mcp", fields)


def world_with_variables() -> World:
    rules = {"KEY": EnvironmentRule(header="X-Key")}
    environment = SessionEnvironment(rules)
    return World(identity(), environment=environment, decisive=("authorization", "x-key"))


def test_variables_are_secrets_that_are_not_kept_for_long() -> None:
    """`SECRETS_SECONDS`: then they are made anew."""
    world = world_with_variables()
    first = world.admit(with_variables(b"a"))
    world.clock.advance(SECRETS_SECONDS - 1)
    assert world.control.recall(with_variables(b"a")) is first
    world.clock.advance(1)
    assert world.control.recall(with_variables(b"a")) is None
    assert world.admit(with_variables(b"a")).key == first.key


def test_one_caller_with_many_values_fills_no_memory() -> None:
    """`KNOWN_ENVIRONMENTS`; the one that was seen last is kept."""
    world = world_with_variables()
    kept = world.admit(with_variables(b"kept"))
    for number in range(KNOWN_ENVIRONMENTS):
        world.admit(with_variables(b"%d" % number))
        assert world.control.recall(with_variables(b"kept")) is kept
    assert len(world.control._known) == KNOWN_ENVIRONMENTS
    assert world.control.recall(with_variables(b"0")) is None


@pytest.mark.parametrize("issuer", ["", "a#b", "a\nb", "a\x00", " a"])
def test_an_issuer_that_would_be_ambiguous(issuer: str) -> None:
    world = World(Identity(issuer=issuer, subject="c"))
    with pytest.raises(InvalidToken):
        world.admit()


# What takes long.


def test_an_authenticator_that_never_answers() -> None:
    """`AUTHENTICATION_SECONDS`: then it is cancelled, and the request gets a 503."""
    cancelled: list[object] = []
    world = World(lambda _: Deferred(cancelled.append))
    admitted = cast("Deferred[Access]", world.control.admit(bearer()))
    failures: list[Failure] = []
    admitted.addErrback(failures.append)
    world.clock.advance(AUTHENTICATION_SECONDS - 1)
    assert (failures, cancelled) == ([], [])
    world.clock.advance(1)
    [failure] = failures
    assert isinstance(failure.value, AuthenticationUnavailable)
    assert len(cancelled) == 1
    assert f"{AUTHENTICATION_SECONDS:g} s" in str(failure.value)


def test_keys_may_be_fetched_while_a_request_waits() -> None:
    assert AUTHENTICATION_SECONDS > KEYS_REFETCH_SECONDS + ANSWER_SECONDS


def test_no_timer_is_left_of_one_that_answers_in_time() -> None:
    waiting: Deferred[Identity] = Deferred()
    world = World(lambda _: waiting)
    admitted = cast("Deferred[Access]", world.control.admit(bearer()))
    waiting.callback(identity())
    assert now(admitted).name == "i#alice"
    assert not world.clock.getDelayedCalls()


def test_what_was_asked_before_it_was_to_be_forgotten_is_not_remembered() -> None:
    waiting: Deferred[Identity] = Deferred()
    world = World(lambda _: waiting)
    admitted = cast("Deferred[Access]", world.control.admit(bearer()))
    world.control.forget()
    waiting.callback(identity())
    assert now(admitted).name == "i#alice"
    assert world.control.recall(bearer()) is None
