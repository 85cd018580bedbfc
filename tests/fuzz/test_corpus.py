"""
What was fuzzed once stays right: each input of the corpus passes its target.

And each oracle can fail: with a defect in what it watches, some input of the corpus does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpbridge import audit_log
from mcpbridge.auth import bearer, proxy_identity
from mcpbridge.auth.access import ANYBODY
from mcpbridge.auth.access_token import TokenRules
from mcpbridge.auth.session_environment import SessionVariables
from mcpbridge.config import dotenv
from mcpbridge.jsonrpc.framing import LineFramer
from mcpbridge.mcp import header_validation, operations, request_state
from mcpbridge.web import client_addresses
from mcpbridge.web.fast_path import FastPath
from mcpbridge.web.request_parser import RequestParser
from tests.fuzz import targets
from tests.fuzz.run import CORPUS, corpus_of, word_list
from tests.fuzz.targets import backend, fields_of, http, load, logs, messages, pieces_of

#: The corpus is for the normal run of the tests: so many inputs, and bytes of all.
MAX_INPUTS = 60
MAX_CORPUS_BYTES = 200 * 1024

TARGETS = load()
INPUTS = [(name, path) for name in sorted(TARGETS) for path in corpus_of(name)]


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(*each, id=f"{each[0]}-{each[1].name}") for each in INPUTS]
)
def test_input_of_the_corpus_passes_its_target(name: str, path: Path) -> None:
    TARGETS[name](path.read_bytes())


def test_every_target_has_a_small_corpus() -> None:
    assert {each.name for each in CORPUS.iterdir()} == set(TARGETS) == {name for name, _ in INPUTS}
    assert len(INPUTS) <= MAX_INPUTS
    assert sum(path.stat().st_size for _, path in INPUTS) <= MAX_CORPUS_BYTES


def test_words_are_bytes() -> None:
    words = word_list()
    assert b"\xef\xbb\xbf" in words
    assert b'"method":"tools/call"' in words


def test_pieces_are_all_of_the_data_and_the_same_for_a_seed() -> None:
    data = bytes(range(256)) * 4
    pieces = pieces_of(data, b"1")
    assert len(pieces) > 1
    assert b"".join(pieces) == data
    assert pieces_of(data, b"1") == pieces
    assert pieces_of(data, b"2") != pieces


def test_fields_are_lines_and_the_rest() -> None:
    assert fields_of(b"a\nb\nc", 2) == [b"a", b"b\nc"]
    assert fields_of(b"a", 3) == [b"a", b"", b""]


def test_all_targets_are_registered() -> None:
    assert targets.TARGETS is TARGETS


def _last(message: Any) -> list[operations.Operation]:
    """Read operations as a decoder that lets the last member count."""
    read = json.loads(message)
    name = (read.get("params") or {}).get("name") if isinstance(read, dict) else None
    return [operations.Operation(read["method"], name)] if isinstance(read, dict) else []


class _Forgetful(RequestParser):
    """Loses a byte of what comes in pieces."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        super().feed(data if len(data) > 1 else b"")


class _Glued(LineFramer):
    """Keeps the carriage returns of the last line."""

    __slots__ = ()

    def finish(self) -> bytes:
        return self._take()


DEFECTS: list[tuple[str, Any, str, Any]] = [
    ("operations", messages, "read_operations", _last),
    ("json_messages", messages, "read_message", lambda body: (body, None)),
    ("http_requests", http, "RequestParser", _Forgetful),
    ("fast_path_access", FastPath, "_access", lambda *_: ANYBODY),
    ("client_addresses", client_addresses, "_forwarded_for", lambda fields: ["192.0.2.1"]),
    ("lines", backend, "LineFramer", _Glued),
    ("access_log", logs, "redacted", lambda text: ascii(text)[2:-1]),
    ("access_tokens", TokenRules, "_check_audience", lambda rules, claims: None),
    ("proxy_identity", proxy_identity, "is_subject", lambda text: True),
    ("bearer", bearer, "_IN_QUERY", re.compile("(?!)")),
    ("session_environment", SessionVariables, "__repr__", lambda found: repr(dict(found))),
    ("request_state", request_state, "_digest", lambda params: b""),
    ("dotenv", dotenv, "_ESCAPES", {}),
    ("audit_log", audit_log, "_printable", bytes),
    ("request_headers", header_validation, "_decoded", lambda name, text: "\xe9"),
]


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "defect"),
    [pytest.param(*each, id=f"{each[0]}-{each[2]}") for each in DEFECTS],
)
def test_oracle_notices_a_defect(
    name: str, owner: Any, attribute: str, defect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, attribute, defect)
    assert any(_fails(TARGETS[name], path) for path in corpus_of(name))


def _fails(target: Callable[[bytes], None], path: Path) -> bool:
    try:
        target(path.read_bytes())
    except (AssertionError, LookupError):
        return True
    return False
