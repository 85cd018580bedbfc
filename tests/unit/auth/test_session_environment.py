"""Variables for the processes of a caller: which request gives which, and what is refused."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.identity import Identity
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.auth.session_environment import SessionEnvironment, SessionVariables
from mcpbridge.config.env_from import EnvironmentRule, read_rules
from mcpbridge.config.tuning import ENV_FROM_VALUE_BYTES
from mcpbridge.errors import MissingCredentials, Refused, SettingError, UnusableCredentials
from tests.examples import examples

HEADER = read_rules({"TOKEN": {"header": "X-Token"}})
NEEDED = read_rules({"TOKEN": {"header": "X-Token", "required": True}})
CLAIM = read_rules({"WHO": {"claim": "who"}})


def request(*fields: tuple[bytes, bytes]) -> AuthenticationRequest:
    return AuthenticationRequest("s", b"POST", b"/mcp", fields)


def identity(**claims: Any) -> Identity:
    return Identity(issuer="https://login.example.org", subject="alice", claims=claims)


def of_header(*values: bytes) -> dict[str, str]:
    """Return the variables for a request with these values of `X-Token`, in several spellings."""
    names = (b"X-Token", b"x-token", b"X-TOKEN")
    fields = [(names[at % 3], value) for at, value in enumerate(values)]
    return dict(SessionEnvironment(HEADER).of(request(*fields), None))


def of_claim(value: Any) -> dict[str, str]:
    return dict(SessionEnvironment(CLAIM).of(request(), identity(who=value)))


# Values.


@pytest.mark.parametrize(
    ("value", "variables"),
    [
        (b"secret", {"TOKEN": "secret"}),
        (b"a b=c;'\"$(d)", {"TOKEN": "a b=c;'\"$(d)"}),
        ("Jos\xe9".encode(), {"TOKEN": "Jos\xe9"}),
        (b"", {}),
        (b"x" * ENV_FROM_VALUE_BYTES, {"TOKEN": "x" * ENV_FROM_VALUE_BYTES}),
    ],
)
def test_a_header_becomes_a_variable(value: bytes, variables: dict[str, str]) -> None:
    assert of_header(value) == variables


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((b"a", b"a"), "the header X-Token is there 2 times"),
        ((b"", b"a"), "the header X-Token is there 2 times"),
        *(
            ((b"hush" + bytes([code]) + b"hush",), "the header X-Token contains control characters")
            for code in (0, 9, 10, 13, 27, 127)
        ),
        (("hush\x85".encode(),), "the header X-Token contains control characters"),
        ((b"hush\xe9",), "the header X-Token is not UTF-8"),
        ((b"\xed\xa0\x80",), "the header X-Token is not UTF-8"),
        (
            (b"x" * (ENV_FROM_VALUE_BYTES + 1),),
            f"the header X-Token has more than {ENV_FROM_VALUE_BYTES} bytes",
        ),
        (
            ("\xe9" * (ENV_FROM_VALUE_BYTES // 2 + 1)).encode().split(b"|"),
            f"the header X-Token has more than {ENV_FROM_VALUE_BYTES} bytes",
        ),
    ],
)
def test_an_unusable_header_is_refused(values: tuple[bytes, ...], says: str) -> None:
    with pytest.raises(UnusableCredentials) as caught:
        of_header(*values)
    assert str(caught.value) == says
    assert caught.value.status == 400
    assert b"hush" not in caught.value.body()


@pytest.mark.parametrize(
    ("value", "variables"),
    [
        ("bob", {"WHO": "bob"}),
        (7, {"WHO": "7"}),
        (-(2**70), {"WHO": str(-(2**70))}),
        (True, {"WHO": "true"}),
        (False, {"WHO": "false"}),
        (0, {"WHO": "0"}),
        ("", {}),
        (None, {}),
    ],
)
def test_a_claim_becomes_a_variable(value: Any, variables: dict[str, str]) -> None:
    assert of_claim(value) == variables


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1.5, "is neither text nor an integer nor a boolean"),
        (["hush"], "is neither text nor an integer nor a boolean"),
        ({"hush": 1}, "is neither text nor an integer nor a boolean"),
        (b"hush", "is neither text nor an integer nor a boolean"),
        ("hush\nX: y", "contains control characters"),
        ("hush\0", "contains control characters"),
        ("hush\ud800", "is not valid Unicode"),
        ("x" * (ENV_FROM_VALUE_BYTES + 1), f"has more than {ENV_FROM_VALUE_BYTES} bytes"),
    ],
)
def test_an_unusable_claim_is_refused(value: Any, says: str) -> None:
    with pytest.raises(UnusableCredentials) as caught:
        of_claim(value)
    assert str(caught.value) == f"the claim 'who' {says}"


def test_an_integer_with_too_many_digits_is_refused() -> None:
    with pytest.raises(UnusableCredentials, match=r"^the claim 'who' has too many digits$"):
        of_claim(10**5000)


def test_issuer_and_subject_are_those_of_the_identity() -> None:
    """Also where its claims say something else."""
    rules = read_rules({"A": {"claim": "sub"}, "B": {"claim": "iss"}})
    found = SessionEnvironment(rules).of(request(), identity(sub="mallory", iss="x"))
    assert dict(found) == {"A": "alice", "B": "https://login.example.org"}


@pytest.mark.parametrize("fields", [(), ((b"X-Token", b""),), ((b"X-Token2", b"a"),)])
def test_a_required_header_must_be_there(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(MissingCredentials) as caught:
        SessionEnvironment(NEEDED).of(request(*fields), None)
    assert str(caught.value) == "the header X-Token is missing, which this server needs"
    assert caught.value.status == 400


@pytest.mark.parametrize("who", [None, identity(), identity(who=None), identity(who="")])
def test_a_required_claim_must_be_there(who: Identity | None) -> None:
    rules = read_rules({"WHO": {"claim": "who", "required": True}})
    with pytest.raises(MissingCredentials, match=r"^the claim 'who' is missing"):
        SessionEnvironment(rules).of(request(), who)


def test_the_representation_of_variables_has_no_value() -> None:
    found = SessionEnvironment(HEADER).of(request((b"X-Token", b"hush")), None)
    assert repr(found) == str(found) == f"{found}" == "<SessionVariables TOKEN>"
    assert (found, len(found)) == ({"TOKEN": "hush"}, 1)


@given(
    st.lists(st.tuples(st.sampled_from([b"X-Token", b"x-token", b"y"]), st.binary()), max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.booleans(),
)
@settings(max_examples=examples(300))
def test_whatever_comes_a_process_could_be_started_with_it(
    fields: list[tuple[bytes, bytes]], claim: Any, required: bool
) -> None:
    """Either a `Refused` that shows no value, or text without control characters."""
    rules = {
        "A": EnvironmentRule(header="X-Token", required=required),
        "B": EnvironmentRule(claim="who", required=required),
    }
    error: Refused | None
    try:
        found = SessionEnvironment(rules).of(request(*fields), identity(who=claim))
    except Refused as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert error.status == 400
        assert re.fullmatch(
            r"the (header X-Token|claim 'who') [a-z0-9 ,]+(UTF-8|Unicode)?", str(error)
        )
        return
    assert found.keys() <= rules.keys()
    for value in found.values():
        data = os.fsencode(os.fsdecode(value.encode()))
        assert 0 < len(data) <= ENV_FROM_VALUE_BYTES
        assert not set(value) & {*map(chr, range(32)), "\x7f"}


# What is refused at the start.


def test_authorization_is_refused_where_it_authenticates() -> None:
    rules = read_rules({"TOKEN": {"header": "authorization"}})
    with pytest.raises(SettingError) as caught:
        SessionEnvironment(rules, server="s", authorization_authenticates=True)
    assert str(caught.value).startswith(
        "mcpServers.s.env_from.TOKEN.header: expected another header: `Authorization` authenticates"
    )
    found = SessionEnvironment(rules).of(request((b"Authorization", b"Bearer x")), None)
    assert dict(found) == {"TOKEN": "Bearer x"}


def test_claims_need_authentication() -> None:
    with pytest.raises(
        SettingError, match=r"^mcpServers\.s\.env_from\.WHO\.claim: expected `auth`"
    ):
        SessionEnvironment(CLAIM, server="s", authenticates=False)
    SessionEnvironment(HEADER, server="s", authenticates=False)


# Keys.

VARIABLES = st.dictionaries(st.sampled_from("ABC"), st.text("ab:1", max_size=3))


@given(VARIABLES, VARIABLES)
@settings(max_examples=examples(300))
def test_digests_are_the_same_for_the_same_variables_only(
    one: dict[str, str], other: dict[str, str]
) -> None:
    """In whatever order they are."""
    environment = SessionEnvironment({})
    turned = dict(reversed(one.items()))
    assert environment.digest(one) == SessionEnvironment(HEADER).digest(SessionVariables(turned))
    assert (environment.digest(one) == environment.digest(other)) == (one == other)


def test_an_admission_has_the_variables_and_a_key_of_its_own() -> None:
    environment = SessionEnvironment(HEADER)
    access = Access(identity(), scopes=frozenset({"read"}), until=7.0)
    keys = set()
    for fields in ((), ((b"X-Token", b"a"),), ((b"X-Token", b"b"),)):
        admitted = environment.admit(access, request(*fields))
        assert admitted.name == "https://login.example.org#alice"
        for name in {*Access.__slots__} - {"environment", "key"}:
            assert getattr(admitted, name) == getattr(access, name)
        assert admitted.environment == environment.of(request(*fields), None)
        assert admitted.key == environment.admit(access, request(*fields)).key
        keys.add(admitted.key)
    assert len(keys) == 3
    assert access.key not in keys


def test_the_key_of_one_identity_is_never_that_of_another() -> None:
    """Not even if a subject looks like a key."""
    environment = SessionEnvironment(HEADER)
    asked = request((b"X-Token", b"a"))
    key = environment.admit(Access(identity()), asked).key
    subject = key.partition("#")[2]
    other = Identity(issuer="https://login.example.org", subject=subject)
    assert environment.admit(Access(other), asked).key != key
    assert environment.admit(ANYBODY, asked).key != key


def test_without_rules_an_admission_stays_as_it_is() -> None:
    access = Access(identity())
    assert SessionEnvironment({}).admit(access, request()) is access
