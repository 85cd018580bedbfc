"""Named tokens, and the files that they and other secrets are read from."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from mcpbridge.auth.identity import Identity
from mcpbridge.auth.named_tokens import (
    LEAST_CHARACTERS,
    PREFIX,
    TOKEN_BYTES,
    NamedTokens,
    make_token,
)
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.auth.secret_file import read_secret
from mcpbridge.config.auth import NamedToken
from mcpbridge.config.tuning import SECRET_FILE_BYTES
from mcpbridge.errors import Forbidden, SettingError
from mcpbridge.interfaces import IAuthenticator

SECRET = "s" * LEAST_CHARACTERS


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def request(token: str | None, server: str = "a") -> AuthenticationRequest:
    fields = [] if token is None else [(b"Authorization", f"Bearer {token}".encode())]
    return AuthenticationRequest(server, b"POST", b"/mcp", fields)


def test_a_new_token_has_random_bytes_and_a_digest() -> None:
    """TOKEN_BYTES of them, in URL-safe base64."""
    token, digest = make_token()
    assert digest == sha256(token)
    body = token.removeprefix(PREFIX)
    assert len(urlsafe_b64decode(body + "=" * (-len(body) % 4))) == TOKEN_BYTES
    assert re.fullmatch(r"mcpb_[A-Za-z0-9_-]+", token)
    assert len({make_token()[0] for _ in range(10)}) == 10
    assert len(token) >= LEAST_CHARACTERS


def test_callers_are_identified_by_their_tokens() -> None:
    tokens = NamedTokens(
        {
            "alice": NamedToken(sha256=sha256("one"), scopes=("x", "y")),
            "bob": NamedToken(sha256=sha256("two").upper(), servers=("a", "b")),
        }
    )
    verifyObject(IAuthenticator, tokens)
    alice = Identity(issuer="token", subject="alice", scopes=frozenset({"x", "y"}))
    assert tokens.authenticate(request("one")) == alice
    for server in ("a", "b"):
        assert tokens.authenticate(request("two", server)) == Identity(
            issuer="token", subject="bob"
        )


@pytest.mark.parametrize("token", [None, "three", "ONE", "on", "onee", "one=", "one.two"])
def test_other_tokens_are_not_known(token: str | None) -> None:
    tokens = NamedTokens({"alice": NamedToken(sha256=sha256("one"))})
    assert tokens.authenticate(request(token)) is None


def test_a_token_is_good_for_its_servers_alone() -> None:
    tokens = NamedTokens(
        {
            "bob": NamedToken(sha256=sha256("two"), servers=("a",)),
            "none": NamedToken(sha256=sha256("none"), servers=()),
        }
    )
    for token, server in (("two", "b"), ("two", "A"), ("none", "a")):
        with pytest.raises(Forbidden) as raised:
            tokens.authenticate(request(token, server))
        assert token != "two" or "two" not in str(raised.value)


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_a_token_in_a_file(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, f" {SECRET}\n".encode(), mode)
    tokens = NamedTokens({"alice": NamedToken(file=path)})
    found = tokens.authenticate(request(SECRET))
    assert found is not None
    assert found.subject == "alice"


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (SECRET.encode(), 0o602, "mode 0602, in which everybody can write"),
        (SECRET[1:].encode(), 0o600, f"at least {LEAST_CHARACTERS} characters"),
        (b"", 0o600, "0 characters"),
        (b"\n", 0o600, "0 characters"),
        (b"a b" * 20, 0o600, "one secret"),
        (b"\xff" * 40, 0o600, "not a text in UTF-8"),
        (b"x" * (SECRET_FILE_BYTES + 1), 0o600, "one secret"),
    ],
)
def test_a_file_without_a_token(tmp_path: Path, content: bytes, mode: int, why: str) -> None:
    """A token must have LEAST_CHARACTERS; the error shows none of it."""
    path = secret_file(tmp_path, content, mode)
    with pytest.raises(SettingError, match=re.escape(why)) as raised:
        NamedTokens({"alice": NamedToken(file=path)})
    assert raised.value.name == "auth.tokens.alice.file"
    assert SECRET[1:] not in str(raised.value)


def test_a_file_that_every_user_can_read_is_a_warning(tmp_path: Path, log_lines: list[str]) -> None:
    """As the secrets of a container often are."""
    path = secret_file(tmp_path, SECRET.encode(), 0o444)
    assert NamedTokens({"alice": NamedToken(file=path)}).authenticate(request(SECRET))
    [line] = [each for each in log_lines if "every user of this machine" in each]
    assert "auth.tokens.alice.file: every user" in line
    assert f"run `chmod o= {path}`" in line
    assert SECRET not in line


def test_a_file_that_is_missing_or_a_directory(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingError, match=why):
            read_secret(str(path), "x")


def test_other_secrets_may_be_shorter(tmp_path: Path) -> None:
    assert read_secret(secret_file(tmp_path, b"x"), "y") == "x"
    longest = b"x" * SECRET_FILE_BYTES
    assert read_secret(secret_file(tmp_path, longest), "y") == longest.decode()


@pytest.mark.parametrize("separator", [b"\n", b"\t", b"\x00", b"\r\n"])
def test_a_file_with_two_secrets(tmp_path: Path, separator: bytes) -> None:
    path = secret_file(tmp_path, SECRET.encode() + separator + SECRET.encode())
    with pytest.raises(SettingError):
        read_secret(path, "y", LEAST_CHARACTERS)
