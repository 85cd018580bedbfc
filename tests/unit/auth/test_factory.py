"""The access control of each server of a bridge, as its settings say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.auth import factory as module
from mcpbridge.auth.access import Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.factory import AccessControls
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.issuer import (
    KEYS_REFETCH_SECONDS,
    KEYS_REFRESH_SHARE,
    KEYS_SECONDS,
    Issuer,
)
from mcpbridge.auth.oauth import VERIFIED_SECONDS
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.config.auth import OAuth
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import Forbidden, InvalidToken, SettingError, Unauthorized
from tests.tokens import (
    AUDIENCE,
    ISSUER,
    NOW,
    FakeFetcher,
    bearer,
    claims,
    jwk,
    published,
    signed,
)


def digest(token: str) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(token.encode()).hexdigest()}


TOKENS = {"alice": digest("one"), "bob": {**digest("two"), "servers": ["a"]}}


class Fixed:
    """An authenticator that knows one word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.asked = 0

    def authenticate(self, request: Any) -> Identity | None:
        self.asked += 1
        if request.headers.get("x-word") != self.word:
            return None
        return Identity(issuer="word", subject=self.word)


def controls(
    servers: dict[str, Any], bridge: Any = None, authenticator: Any = None
) -> list[AccessControl | None]:
    """Return the access control of each server, whose setting `auth` is given by its name."""
    all_servers = tuple(
        ServerSettings(command="x", name=name, base_uri=f"/{name}", auth=auth)
        for name, auth in servers.items()
    )
    settings = BridgeSettings(servers=all_servers, auth=bridge)
    factory = AccessControls(settings, Clock(), lambda name, _: Fixed(name), authenticator)
    found = [factory.of(each) for each in all_servers]
    factory.stop()
    assert factory.documents == {}
    return found


def name_for(
    control: AccessControl | None, token: str = "", word: str = "", server: str = "a"
) -> str:
    """Return as whom a request is admitted."""
    assert control is not None
    fields = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    fields += [(b"X-Word", word.encode())] if word else []
    admitted = control.admit(AuthenticationRequest(server, b"POST", b"/mcp", fields))
    assert isinstance(admitted, Access)
    return admitted.name


def test_without_settings_everybody_is_let_in() -> None:
    assert controls({"a": None, "b": False}) == [None, None]


def test_the_settings_of_the_bridge_hold_for_all_servers_but_those_that_say_otherwise() -> None:
    a, b, c = controls({"a": None, "b": {"scopes": "use"}, "c": False}, {"tokens": TOKENS})
    assert c is None
    assert name_for(a, "one") == name_for(a, "one", server="b") == "token#alice"
    assert name_for(a, "two") == "token#bob"
    assert b is not None
    assert (b.rules.always, b.rules.reads_messages) == (("use",), False)
    with pytest.raises(Forbidden):
        name_for(b, "two", server="b")
    for token, error in (("three", InvalidToken), ("", Unauthorized)):
        with pytest.raises(error):
            name_for(a, token)


def test_a_server_may_have_tokens_of_its_own() -> None:
    """They take the place of the bridge's."""
    a, b = controls({"a": {"tokens": {"carol": digest("four")}}, "b": None}, {"tokens": TOKENS})
    assert name_for(a, "four") == "token#carol"
    for control, token in ((a, "one"), (b, "four")):
        with pytest.raises(InvalidToken):
            name_for(control, token)


def test_the_authenticator_of_the_application_is_asked_first() -> None:
    own = Fixed("hello")
    a, b, c = controls(
        {"a": None, "b": {"tokens": TOKENS, "authenticator": "x.y"}, "c": False}, authenticator=own
    )
    assert c is None
    assert name_for(a, word="hello") == name_for(b, word="hello") == "word#hello"
    assert name_for(b, word="x.y") == "word#x.y"
    assert name_for(b, "one") == "token#alice"
    # What may decide is not known, so nothing is remembered.
    before = own.asked
    assert name_for(b, "one") == "token#alice"
    assert own.asked == before + 1
    with pytest.raises(Unauthorized):
        name_for(a, word="x.y")


def test_scopes_and_what_they_include() -> None:
    scopes = {"*": "use", "tools/call": {"add": "adder"}}
    tokens = {"alice": {**digest("one"), "scopes": ["admin"]}}
    auth = {"tokens": tokens, "scopes": scopes, "scope_hierarchy": {"admin": ["use"]}}
    [control] = controls({"a": auth})
    assert name_for(control, "one") == "token#alice"
    assert control is not None
    assert control.rules.reads_messages


@pytest.mark.parametrize("auth", [{"scopes": "use"}, {"tokens": {}, "scopes": "use"}])
def test_settings_that_identify_nobody_are_refused(auth: Any) -> None:
    with pytest.raises(SettingError, match="a way to tell who a caller is"):
        controls({"a": auth})


def test_a_withdrawn_key_is_forgotten_by_all_servers_that_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    clock.advance(NOW)
    fetcher = FakeFetcher(published())

    def make(settings: OAuth, reactor: Any, **more: Any) -> Issuer:
        return Issuer(settings, reactor, fetcher, **more)

    monkeypatch.setattr(module, "make_issuer", make)
    servers = tuple(
        ServerSettings(command="x", name=name, base_uri=f"/{name}") for name in ("a", "b")
    )
    settings = BridgeSettings(
        servers=servers,
        public_url="https://mcp.example.org",
        auth={"oauth": {"issuer": ISSUER, "audience": [AUDIENCE]}},
    )
    factory = AccessControls(settings, clock, lambda name, _: Fixed(name))
    token = signed(claims(exp=int(NOW) + 10_000))

    def outcomes() -> list[str]:
        """Return as whom the token is admitted at each server, or why not."""
        found: list[Any] = []
        for control in found_controls:
            try:
                admitted = control.admit(bearer(token))
            except InvalidToken as error:
                found.append(type(error).__name__)
                continue
            if isinstance(admitted, Access):
                found.append(admitted.name)
            else:
                admitted.addCallbacks(
                    lambda access: found.append(access.name),
                    lambda failure: found.append(type(failure.value).__name__),
                )
        return found

    found_controls = [control for each in servers if (control := factory.of(each)) is not None]
    assert outcomes() == [f"{ISSUER}#alice"] * 2
    fetcher.answers.update(published(jwk(kid="two")))
    # Nobody comes with another token: they are fetched when the known one is verified again.
    clock.advance(VERIFIED_SECONDS)
    assert outcomes() == ["InvalidToken"] * 2
    fetcher.answers.update(published())
    clock.advance(KEYS_REFETCH_SECONDS)
    assert outcomes() == [f"{ISSUER}#alice"] * 2
    fetcher.answers.update(published(jwk(kid="two")))
    clock.advance(KEYS_SECONDS * KEYS_REFRESH_SHARE)
    # Other requests have the keys fetched while the token is remembered.
    assert outcomes() == [f"{ISSUER}#alice"] * 2
    assert isinstance(found_controls[0].admit(bearer(signed(kid="two"))), Access)
    late = outcomes()
    assert late == []
    # As with any key that is not known, the issuer is asked once more.
    clock.advance(KEYS_REFETCH_SECONDS)
    assert late == ["InvalidToken"] * 2
    factory.stop()


def test_issuer_is_kept_where_other_settings_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless its files have changed; what only the settings of before have used is stopped."""
    authorities = tmp_path / "ca.pem"
    authorities.write_text("one")
    made: list[Issuer] = []
    stopped: list[Issuer] = []

    def make(settings: OAuth, reactor: Any, **more: Any) -> Issuer:
        issuer = Issuer(settings, reactor, FakeFetcher(published()), **more)
        stop = issuer.stop

        def noted() -> None:
            stopped.append(issuer)
            stop()

        monkeypatch.setattr(issuer, "stop", noted)
        made.append(issuer)
        return issuer

    monkeypatch.setattr(module, "make_issuer", make)

    def load(previous: AccessControls | None, issuer: str = ISSUER) -> AccessControls:
        oauth = {"issuer": issuer, "audience": [AUDIENCE], "ca_file": str(authorities)}
        server = ServerSettings(command="x", name="a", auth={"oauth": oauth})
        settings = BridgeSettings(servers=(server,), public_url="https://mcp.example.org")
        controls = AccessControls(settings, Clock(), lambda name, _: None, previous=previous)
        assert controls.of(server) is not None
        return controls

    first = load(None)
    second = load(first)
    second.take_over()
    assert (len(made), stopped) == (1, [])
    discarded = load(second, "https://other.example.org")
    discarded.discard()
    assert stopped == [made[1]]
    authorities.write_text("two")
    third = load(second)
    third.take_over()
    assert stopped == [made[1], made[0]]
    fourth = load(third, "https://other.example.org")
    fourth.take_over()
    assert stopped[2:] == [made[2]]
    # A key that its issuer withdraws is forgotten by those who decide now.
    [(_, controls)] = fourth._deciding.items()
    assert controls == fourth._controls_of[next(iter(fourth._issuers))]
    fourth.stop()
    assert stopped[3:] == [made[3]]
