"""What an issuer is asked, how often, and what happens while it is away."""

from __future__ import annotations

from base64 import b64decode
from json import dumps
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from mcpbridge.auth import issuer as module
from mcpbridge.auth.issuer import (
    ACTIVE_SECONDS,
    INACTIVE_SECONDS,
    INTROSPECTION_SECONDS,
    KEYS_REFETCH_SECONDS,
    KEYS_REFRESH_SHARE,
    KEYS_SECONDS,
    KEYS_STALE_SECONDS,
    MAX_ANSWERS,
    MAX_INTROSPECTION_WAITERS,
    MAX_INTROSPECTION_WAITERS_OF_ADDRESS,
    MAX_INTROSPECTIONS,
    MAX_INTROSPECTIONS_OF_ADDRESS,
    MAX_KEY_WAITERS,
    MAX_KEY_WAITERS_OF_ADDRESS,
    MAX_KEYS_SECONDS,
    MAX_KID_CHARS,
    METADATA_SECONDS,
    MIN_KEYS_SECONDS,
    RETRY_SECONDS,
    Introspected,
    Issuer,
    metadata_urls,
)
from mcpbridge.auth.outbound import Answer
from mcpbridge.config.auth import Introspection, OAuth
from mcpbridge.errors import AuthenticationUnavailable, InvalidToken
from tests.tokens import (
    INTROSPECTION,
    ISSUER,
    JWKS,
    METADATA,
    FakeFetcher,
    away,
    jwk,
    published,
)

ASKED = Introspection(client_id="the bridge", client_secret_file="x")


class Asked:
    """An issuer with a clock and a fake client; nothing was fetched yet."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.fetcher = FakeFetcher(published())
        #: How often keys were withdrawn.
        self.withdrawn = 0
        self.issuer = Issuer(
            OAuth(issuer=ISSUER, **settings), self.clock, self.fetcher, "s/cr:t", self._withdraw
        )

    def _withdraw(self) -> None:
        self.withdrawn += 1

    def ask(
        self, kid: str | None = "one", algorithm: str = "ES256", address: str | None = None
    ) -> Any:
        """Return the ids of keys, the error, or a list that will have one of them."""
        try:
            found = self.issuer.keys_for(kid, algorithm, address)
        except (InvalidToken, AuthenticationUnavailable) as error:
            return type(error)
        if not isinstance(found, Deferred):
            return [key.kid for key in found]
        results: list[Any] = []
        found.addCallbacks(
            lambda keys: results.append([key.kid for key in keys]),
            lambda failure: results.append(type(failure.value)),
        )
        return results[0] if results else results

    def introspect(self, token: str = "token", address: str | None = None) -> Any:
        try:
            found = self.issuer.introspect(token, address)
        except AuthenticationUnavailable as error:
            return type(error)
        if isinstance(found, Introspected):
            return found.claims
        results: list[Any] = []
        found.addCallbacks(
            lambda answer: results.append(answer.claims),
            lambda failure: results.append(type(failure.value)),
        )
        return results[0] if results else results

    @property
    def fetches(self) -> int:
        return self.fetcher.count(JWKS)


def test_metadata_urls() -> None:
    at = "https://login.example.org:8443"
    assert metadata_urls(at) == [
        f"{at}/.well-known/oauth-authorization-server",
        f"{at}/.well-known/openid-configuration",
    ]
    assert metadata_urls(f"{at}/") == metadata_urls(at)
    assert metadata_urls(f"{at}/a/b/") == [
        f"{at}/.well-known/oauth-authorization-server/a/b",
        f"{at}/.well-known/openid-configuration/a/b",
        f"{at}/a/b/.well-known/openid-configuration",
    ]


def test_keys_are_fetched_once() -> None:
    asked = Asked()
    assert asked.ask() == ["one"]
    assert asked.ask() == ["one"]
    assert asked.fetcher.requests == [METADATA, JWKS]
    assert asked.fetcher.public_only == {METADATA: False, JWKS: False}


def test_all_who_wait_share_one_fetch() -> None:
    asked = Asked()
    asked.fetcher.held = True
    waiting = [asked.ask() for _ in range(5)]
    asked.fetcher.release()
    asked.fetcher.release()
    assert waiting == [[["one"]]] * 5
    assert asked.fetcher.requests == [METADATA, JWKS]


@pytest.mark.parametrize("number", [1, 2])
def test_the_metadata_may_be_at_several_places(number: int) -> None:
    asked = Asked()
    document = asked.fetcher.answers.pop(METADATA)
    asked.fetcher.answers[metadata_urls(ISSUER)[number]] = document
    assert asked.ask() == ["one"]
    assert asked.fetcher.requests == [*metadata_urls(ISSUER)[: number + 1], JWKS]


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"issuer": ISSUER + "/", "jwks_uri": JWKS},
        {"issuer": "https://evil.example.org", "jwks_uri": JWKS},
        {"issuer": [ISSUER], "jwks_uri": JWKS},
        {"issuer": ISSUER},
        {"issuer": ISSUER, "jwks_uri": None},
        {"issuer": ISSUER, "jwks_uri": 1},
        {"issuer": ISSUER, "jwks_uri": ""},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        {"issuer": ISSUER, "jwks_uri": "http://login.example.org/tenant/jwks"},
        {"issuer": ISSUER, "jwks_uri": "https://user@login.example.org/jwks"},
        {"issuer": ISSUER, "jwks_uri": "https://login.example.org/jwks\r\nX: y"},
        {"issuer": ISSUER, "jwks_uri": "https://login.example.org:99999/jwks"},
        {"issuer": ISSUER, "jwks_uri": "//login.example.org/jwks"},
        Answer(200, b"<html>"),
        Answer(200, b"[" * 5000),
        Answer(500, b"{}"),
        Answer(302, b"{}"),
        away(),
    ],
)
def test_wrong_metadata_is_not_used(document: Any, log_lines: list[str]) -> None:
    asked = Asked()
    asked.fetcher.answers[METADATA] = document
    assert asked.ask() is AuthenticationUnavailable
    assert set(asked.fetcher.requests) <= set(metadata_urls(ISSUER))
    assert (
        sum("its keys cannot be fetched" in line or "its metadata" in line for line in log_lines)
        == 1
    )


@pytest.mark.parametrize(
    "keys", [{}, {"keys": None}, [], Answer(404, b""), Answer(200, b"x"), away()]
)
def test_wrong_keys_are_no_answer(keys: Any) -> None:
    asked = Asked()
    asked.fetcher.answers[JWKS] = keys
    assert asked.ask() is AuthenticationUnavailable


def test_an_issuer_may_have_no_keys_any_more() -> None:
    asked = Asked()
    asked.fetcher.answers[JWKS] = {"keys": []}
    assert asked.ask() is InvalidToken


@pytest.mark.parametrize(
    ("url", "settings", "public_only"),
    [
        ("https://login.example.org/other", {}, False),
        ("https://LOGIN.example.org:443/other", {}, False),
        ("https://login.example.org:8443/other", {}, True),
        ("https://keys.example.org/jwks", {}, True),
        ("https://10.0.0.1/jwks", {}, True),
        ("https://keys.example.org/jwks", {"trusted_hosts": ("keys.example.org",)}, False),
        ("http://keys.example.org/jwks", {"trusted_hosts": ("Keys.example.org",)}, False),
        ("http://keys.example.org:81/", {"trusted_hosts": ("keys.example.org:81",)}, False),
        ("https://keys.example.org/jwks", {"trusted_hosts": ("keys.example.org:81",)}, True),
        ("https://[::1]/jwks", {"trusted_hosts": ("[::1]",)}, False),
    ],
)
def test_other_hosts_must_be_public(url: str, settings: Any, public_only: bool) -> None:
    asked = Asked(**settings)
    asked.fetcher.answers[METADATA] = {"issuer": ISSUER, "jwks_uri": url}
    asked.fetcher.answers[url] = {"keys": [jwk()]}
    assert asked.ask() == ["one"]
    assert asked.fetcher.public_only[url] is public_only


def test_configured_urls_are_trusted_and_need_no_metadata() -> None:
    inner = "https://inner.example/keys"
    asked = Asked(jwks_uri=inner)
    asked.fetcher.answers[inner] = {"keys": [jwk()]}
    assert asked.ask() == ["one"]
    assert (asked.fetcher.requests, asked.fetcher.public_only) == ([inner], {inner: False})


# The age of keys.


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ("", KEYS_SECONDS),
        ("public, max-age=600, must-revalidate", 600),
        ("max-age=1", MIN_KEYS_SECONDS),
        ("max-age=999999999", MAX_KEYS_SECONDS),
        ("max-age=9999999999999", KEYS_SECONDS),
        ("max-age=-1", KEYS_SECONDS),
        ("s-maxage=600", KEYS_SECONDS),
        ("no-store", MIN_KEYS_SECONDS),
        ("no-cache, max-age=600", MIN_KEYS_SECONDS),
    ],
)
def test_keys_have_an_age(cache_control: str, seconds: float) -> None:
    asked = Asked()
    asked.fetcher.answers[JWKS] = Answer(200, dumps({"keys": [jwk()]}).encode(), cache_control)
    asked.ask()
    asked.clock.advance(seconds * KEYS_REFRESH_SHARE - 0.001)
    assert (asked.ask(), asked.fetches) == (["one"], 1)
    asked.clock.advance(0.002)
    assert (asked.ask(), asked.fetches) == (["one"], 2)


def test_keys_are_fetched_anew_while_they_still_serve() -> None:
    asked = Asked()
    asked.ask()
    asked.clock.advance(KEYS_SECONDS * KEYS_REFRESH_SHARE)
    asked.fetcher.held = True
    asked.fetcher.answers[JWKS] = {"keys": [jwk(kid="two")]}
    assert [asked.ask(), asked.ask()] == [["one"], ["one"]]
    assert asked.fetches == 2
    asked.fetcher.release()
    assert asked.ask("two") == ["two"]


def test_keys_that_nobody_used_for_long_are_fetched_before_they_serve_again() -> None:
    asked = Asked()
    asked.ask()
    asked.clock.advance(KEYS_SECONDS)
    asked.fetcher.answers[JWKS] = {"keys": [jwk(kid="two")]}
    assert asked.ask("one") is InvalidToken
    assert asked.ask("two") == ["two"]


def test_the_metadata_is_fetched_anew_each_hour() -> None:
    asked = Asked()
    for _ in range(int(2 * METADATA_SECONDS / KEYS_SECONDS) + 1):
        assert asked.ask() == ["one"]
        asked.clock.advance(KEYS_SECONDS)
    assert asked.fetcher.count(METADATA) == 3


# An issuer that is away.


def test_known_keys_serve_for_an_hour_while_the_issuer_is_away() -> None:
    asked = Asked()
    asked.ask()
    asked.fetcher.answers.update({METADATA: away(), JWKS: away()})
    asked.clock.advance(KEYS_SECONDS - 1)
    minutes = int(KEYS_STALE_SECONDS / 60)
    for _ in range(minutes):
        assert asked.ask() == ["one"]
        assert asked.ask("two") is AuthenticationUnavailable
        asked.clock.advance(60)
    asked.clock.advance(1)
    assert asked.ask() is AuthenticationUnavailable
    assert asked.fetches <= minutes + 3
    asked.fetcher.answers.update(published())
    asked.clock.advance(RETRY_SECONDS)
    assert asked.ask() == ["one"]


def test_an_issuer_away_for_ten_minutes_is_never_a_401() -> None:
    asked = Asked()
    asked.ask()
    asked.fetcher.answers.update({METADATA: away(), JWKS: away()})
    seen = set()
    for _ in range(600):
        asked.clock.advance(1)
        assert asked.ask() == ["one"]
        seen.add(str(asked.ask("unknown")))
    # Requests that wait for the next fetch are lists, until it has failed.
    assert str(InvalidToken) not in seen
    assert str(AuthenticationUnavailable) in seen
    assert asked.fetches <= 2 * 10 + 2
    asked.issuer.stop()


def test_what_has_never_succeeded_is_tried_again_soon() -> None:
    asked = Asked()
    asked.fetcher.answers[JWKS] = away()
    assert asked.ask() is AuthenticationUnavailable
    asked.fetcher.answers.update(published())
    with pytest.raises(AuthenticationUnavailable) as caught:
        asked.issuer.keys_for("one", "ES256")
    assert caught.value.retry_after == RETRY_SECONDS
    asked.clock.advance(RETRY_SECONDS)
    assert asked.ask() == ["one"]


# Unknown keys.


def test_a_new_key_is_looked_for_at_once() -> None:
    asked = Asked()
    asked.ask()
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    asked.fetcher.answers[JWKS] = {"keys": [jwk(), jwk(kid="two")]}
    assert asked.ask("two") == ["two"]
    assert asked.fetches == 2


def test_a_key_that_was_published_after_the_last_fetch_is_waited_for() -> None:
    """It is good: to refuse it would be wrong, and to fetch it at once is not allowed."""
    asked = Asked()
    asked.ask()
    asked.fetcher.answers[JWKS] = {"keys": [jwk(), jwk(kid="two")]}
    waiting = asked.ask("two")
    assert waiting == []
    assert asked.ask("one") == ["one"]
    asked.clock.advance(KEYS_REFETCH_SECONDS - 1)
    assert (waiting, asked.fetches) == ([], 1)
    asked.clock.advance(1)
    assert (waiting, asked.fetches) == ([["two"]], 2)


def test_a_key_that_was_looked_for_in_vain_is_refused_at_once() -> None:
    asked = Asked()
    asked.ask()
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert asked.ask("bad") is InvalidToken
    assert asked.ask("bad") is InvalidToken
    assert asked.fetches == 2
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert asked.ask("bad") is InvalidToken
    assert asked.fetches == 3


def test_a_key_that_was_looked_for_in_vain_may_be_published_later() -> None:
    asked = Asked()
    asked.ask()
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert asked.ask("next") is InvalidToken
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert asked.ask("another") is InvalidToken
    asked.fetcher.answers[JWKS] = {"keys": [jwk(kid="next")]}
    waiting = asked.ask("next")
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert waiting == [["next"]]


@pytest.mark.parametrize(
    ("keys", "withdrawn"),
    [
        ([jwk()], 0),
        ([jwk(kid="two"), jwk()], 0),
        ([jwk(kid="two")], 1),
        ([], 1),
        # Another key of the same id, and the same key for other signatures.
        ([{**jwk(kid="two"), "kid": "one"}], 1),
        ([{**jwk(), "use": "enc"}], 1),
    ],
)
def test_a_key_that_is_withdrawn(keys: list[Any], withdrawn: int) -> None:
    asked = Asked()
    asked.ask()
    asked.clock.advance(KEYS_SECONDS)
    asked.fetcher.answers[JWKS] = {"keys": keys}
    asked.ask()
    assert (asked.fetches, asked.withdrawn) == (2, withdrawn)


def test_an_issuer_that_is_away_withdraws_nothing() -> None:
    asked = Asked()
    asked.ask()
    asked.fetcher.answers[JWKS] = away()
    asked.clock.advance(KEYS_SECONDS)
    asked.ask()
    assert (asked.fetches, asked.withdrawn) == (2, 0)


def test_an_issuer_may_move_its_keys() -> None:
    asked = Asked()
    asked.ask()
    moved = JWKS + "/moved"
    asked.fetcher.answers[METADATA] = {"issuer": ISSUER, "jwks_uri": moved}
    asked.fetcher.answers[moved] = asked.fetcher.answers.pop(JWKS)
    asked.clock.advance(KEYS_SECONDS)
    assert asked.ask() == ["one"]
    assert asked.fetcher.count(moved) == 0
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert asked.ask() == ["one"]
    assert asked.fetcher.count(moved) == 1


def test_a_thousand_unknown_keys_are_two_fetches_a_minute() -> None:
    asked = Asked()
    results = []
    for number in range(1000):
        results.append(asked.ask(f"unknown {number}"))
        asked.clock.advance(0.12)
    assert asked.clock.seconds() == pytest.approx(1_000_120)
    assert asked.fetches <= 4
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    refused = [result for result in results if result in (InvalidToken, [InvalidToken])]
    assert len(refused) == 1000


def test_as_many_wait_for_keys_as_may() -> None:
    asked = Asked()
    asked.ask()
    waiting = [asked.ask(f"unknown {number}") for number in range(MAX_KEY_WAITERS)]
    assert asked.ask("one more") is AuthenticationUnavailable
    assert asked.ask("one") == ["one"]
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert waiting == [[InvalidToken]] * MAX_KEY_WAITERS


def test_unknown_keys_of_one_address_do_not_take_all_places() -> None:
    asked = Asked()
    asked.ask()
    asked.fetcher.answers[JWKS] = {"keys": [jwk(kid="new")]}
    made_up = [
        asked.ask(f"unknown {number}", address="192.0.2.1")
        for number in range(MAX_KEY_WAITERS_OF_ADDRESS)
    ]
    assert asked.ask("one more", address="192.0.2.1") is AuthenticationUnavailable
    assert asked.ask("one", address="192.0.2.1") == ["one"]
    good = asked.ask("new", address="192.0.2.2")
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert good == [["new"]]
    assert made_up == [[InvalidToken]] * MAX_KEY_WAITERS_OF_ADDRESS
    assert len(asked.issuer._missing) == MAX_KEY_WAITERS_OF_ADDRESS
    assert len(asked.issuer._key_waiters) == 0


def test_only_so_many_missing_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MISSING_KIDS", 2)
    asked = Asked()
    asked.ask()
    waiting = [asked.ask(kid) for kid in ("a", "b" * (MAX_KID_CHARS + 1), "b", "c")]
    asked.clock.advance(KEYS_REFETCH_SECONDS)
    assert waiting == [[InvalidToken]] * 4
    assert asked.issuer._missing == {"a", "b"}
    assert asked.ask("a") is InvalidToken
    assert asked.ask("c") == []
    asked.issuer.stop()


def test_who_gives_up_does_not_wait() -> None:
    asked = Asked()
    asked.ask()
    waiting = asked.issuer.keys_for("two", "ES256")
    assert isinstance(waiting, Deferred)
    waiting.cancel()
    waiting.addErrback(lambda failure: failure.trap(CancelledError))
    assert len(asked.issuer._keys_work) == len(asked.issuer._key_waiters) == 0
    asked.issuer.stop()


@pytest.mark.parametrize("held", [False, True])
def test_stop_ends_all_waits(held: bool) -> None:
    asked = Asked(introspection=ASKED)
    if not held:
        asked.ask()
    asked.fetcher.held = True
    waiting = [asked.ask("two"), asked.introspect()]
    asked.issuer.stop()
    assert waiting == [[AuthenticationUnavailable], [AuthenticationUnavailable]]
    assert asked.clock.getDelayedCalls() == []
    assert asked.fetcher.cancelled
    assert asked.ask("three") is AuthenticationUnavailable
    assert asked.introspect() is AuthenticationUnavailable
    asked.issuer.stop()


# Opaque tokens.

GOOD = {"active": True, "aud": "x", "sub": "alice"}


def introspecting(answer: Any = GOOD, **settings: Any) -> Asked:
    asked = Asked(introspection=ASKED, **settings)
    asked.fetcher.answers[INTROSPECTION] = answer
    return asked


def test_the_issuer_is_asked_about_an_opaque_token() -> None:
    asked = introspecting()
    assert asked.introspect("a+b/c=") == GOOD
    form, authorization = asked.fetcher.sent[-1]
    assert form == {"token": "a+b/c=", "token_type_hint": "access_token"}
    assert authorization is not None
    scheme, _, pair = authorization.partition(b" ")
    assert (scheme, b64decode(pair)) == (b"Basic", b"the+bridge:s%2Fcr%3At")


def test_its_answer_is_kept_for_a_minute() -> None:
    asked = introspecting()
    assert asked.introspect() == GOOD
    asked.fetcher.answers[INTROSPECTION] = {"active": False}
    asked.clock.advance(ACTIVE_SECONDS - 1)
    assert asked.introspect() == GOOD
    assert asked.fetcher.count(INTROSPECTION) == 1
    known = asked.issuer.introspect("token")
    assert isinstance(known, Introspected)
    assert asked.issuer.seconds_left(known) == 1
    asked.clock.advance(1)
    assert asked.introspect() is None
    asked.fetcher.answers[INTROSPECTION] = GOOD
    asked.clock.advance(INACTIVE_SECONDS - 1)
    assert asked.introspect() is None
    asked.clock.advance(1)
    assert asked.introspect() == GOOD


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        None,
        {"active": "true"},
        {"active": 1},
        {"active": None},
        {"aud": "x", "sub": "alice"},
        Answer(401, b'{"active":true}'),
        Answer(500, b'{"active":true}'),
        Answer(302, b""),
        Answer(200, b"true"),
        Answer(200, b'{"active":true,"x":NaN}'),
        Answer(200, b'{"active":true'),
        Answer(200, b"[" * 5000),
        away(),
    ],
)
def test_no_answer_is_unavailable_and_not_kept(answer: Any, log_lines: list[str]) -> None:
    asked = introspecting(answer)
    assert asked.introspect("s3cret-token") is AuthenticationUnavailable
    assert "s3cret-token" not in "".join(log_lines)
    assert "s/cr:t" not in "".join(log_lines)
    asked.fetcher.answers[INTROSPECTION] = GOOD
    assert asked.introspect("s3cret-token") == GOOD


def test_an_issuer_without_introspection_is_unavailable() -> None:
    asked = introspecting()
    asked.fetcher.answers[METADATA] = {"issuer": ISSUER, "jwks_uri": JWKS}
    assert asked.introspect() is AuthenticationUnavailable
    inner = "https://inner.example/ask"
    asked = Asked(
        introspection=Introspection(client_id="x", client_secret_file="x", endpoint=inner)
    )
    asked.fetcher.answers[inner] = GOOD
    assert asked.introspect() == GOOD
    assert (asked.fetcher.requests, asked.fetcher.public_only) == ([inner], {inner: False})


def test_one_token_is_asked_about_once() -> None:
    asked = introspecting()
    asked.introspect("another")
    asked.fetcher.held = True
    waiting = [asked.introspect() for _ in range(5)]
    asked.fetcher.release()
    assert waiting == [[GOOD]] * 5
    assert asked.fetcher.count(INTROSPECTION) == 2


def test_only_so_many_tokens_are_asked_about_at_a_time() -> None:
    asked = introspecting()
    asked.introspect("another")
    asked.fetcher.held = True
    waiting = [asked.introspect(str(number)) for number in range(MAX_INTROSPECTION_WAITERS)]
    assert asked.introspect("one more") is AuthenticationUnavailable
    assert asked.introspect("another") == GOOD
    assert asked.fetcher.count(INTROSPECTION) == 1 + MAX_INTROSPECTIONS
    asked.fetcher.release()
    assert asked.fetcher.count(INTROSPECTION) == 1 + 2 * MAX_INTROSPECTIONS
    assert waiting[:MAX_INTROSPECTIONS] == [[GOOD]] * MAX_INTROSPECTIONS
    asked.clock.advance(INTROSPECTION_SECONDS)
    assert waiting[MAX_INTROSPECTIONS:] == [[AuthenticationUnavailable]] * (
        MAX_INTROSPECTION_WAITERS - MAX_INTROSPECTIONS
    )
    asked.fetcher.held = False
    assert asked.introspect("one more") == GOOD


def test_only_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = introspecting()
    for number in range(MAX_ANSWERS + 1):
        asked.introspect(str(number))
    assert asked.fetcher.count(INTROSPECTION) == MAX_ANSWERS + 1
    asked.introspect("1")
    assert asked.fetcher.count(INTROSPECTION) == MAX_ANSWERS + 1
    asked.introspect("0")
    assert asked.fetcher.count(INTROSPECTION) == MAX_ANSWERS + 2
    monkeypatch.setattr(module, "MAX_ANSWERS_BYTES", 1000)
    large = {**GOOD, "x": "y" * 600}
    asked.fetcher.answers[INTROSPECTION] = large
    asked.introspect("large")
    asked.introspect("larger")
    assert len(asked.issuer._active._by_digest) == 1
    assert asked.introspect("larger") == large


def test_tokens_that_are_made_up_drop_no_good_answer() -> None:
    asked = introspecting()
    assert asked.introspect("good") == GOOD
    asked.fetcher.answers[INTROSPECTION] = {"active": False}
    for number in range(MAX_ANSWERS + 1):
        assert asked.introspect(str(number)) is None
    assert asked.introspect("good") == GOOD
    assert len(asked.issuer._inactive._by_digest) == MAX_ANSWERS


def test_nothing_is_kept_of_requests_that_were_cancelled() -> None:
    asked = introspecting()
    asked.introspect("another")
    asked.fetcher.held = True
    for number in range(2 * MAX_INTROSPECTION_WAITERS):
        waiting = asked.issuer.introspect(str(number))
        assert isinstance(waiting, Deferred)
        waiting.cancel()
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
    # Those that are being asked about; the others will never be.
    assert len(asked.issuer._questions) == MAX_INTROSPECTIONS
    asked.fetcher.release()
    assert len(asked.issuer._questions) == 0
    assert asked.fetcher.count(INTROSPECTION) == 1 + MAX_INTROSPECTIONS
    assert asked.clock.getDelayedCalls() == []


def test_tokens_of_one_address_do_not_take_all_places() -> None:
    asked = introspecting()
    asked.introspect("another")
    asked.fetcher.held = True
    made_up = [
        asked.introspect(f"made up {number}", "192.0.2.1")
        for number in range(MAX_INTROSPECTION_WAITERS_OF_ADDRESS)
    ]
    assert asked.introspect("one more", "192.0.2.1") is AuthenticationUnavailable
    assert asked.fetcher.count(INTROSPECTION) == 1 + MAX_INTROSPECTIONS_OF_ADDRESS
    good = asked.introspect("good", "192.0.2.2")
    assert asked.fetcher.count(INTROSPECTION) == 2 + MAX_INTROSPECTIONS_OF_ADDRESS
    asked.fetcher.release()
    assert good == [GOOD]
    asked.issuer.stop()
    assert made_up[-1] == [AuthenticationUnavailable]
