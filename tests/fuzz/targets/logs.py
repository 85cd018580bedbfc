"""What of a client's bytes gets into logs."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from urllib.parse import quote_from_bytes, unquote_to_bytes

from twisted.internet.task import Clock

from mcpbridge.audit_log import AuditLog, AuditRecord
from mcpbridge.config.tuning import AUDIT_ARGUMENT_BYTES, AUDIT_TEXT_CHARS
from mcpbridge.web.access_log import LoggedRequest, redacted
from tests.fuzz.targets import fields_of, target
from tests.fuzz.targets.messages import loads

_IDENT = b"0123abcd-4567-4def-89ab-0123456789ab"
_SECRET = b"Zm9v-sEcReT_T0keN~x"


def _check(shown: str, hidden: bytes) -> None:
    assert shown.isascii()
    assert shown.isprintable()
    text = shown.encode("ascii")
    for _ in range(8):
        assert hidden not in text
        text = unquote_to_bytes(text)


@target
def access_log(data: bytes) -> None:
    """No line has a whole session id or a token, however it was escaped."""
    before, after = fields_of(data, 2)
    escaped = quote_from_bytes(_IDENT, safe="").replace("-", "%2D").encode()
    every = b"".join(b"%%%02x" % each for each in _IDENT)
    twice = every.replace(b"%", b"%25")
    for ident in (_IDENT, escaped, every, twice):
        _check(redacted(before + ident + after), _IDENT)
    for ident in (_IDENT, every):
        logged = LoggedRequest.of("-", before, b"/mcp?" + ident, ident + after)
        assert _IDENT.decode() not in "".join(logged)
    for secret in (b"access_token=%b", b"&API-KEY=%b", b"?client_secret=%b", b"%%74oken=%b"):
        _check(redacted(before + b"&" + secret % _SECRET + b"&" + after), _SECRET)


_DIRECTORY = tempfile.TemporaryDirectory(prefix="mcpbridge-fuzz-")
atexit.register(_DIRECTORY.cleanup)


@target
def audit_log(data: bytes) -> None:
    """A record is one printable line of JSON that says what was recorded, whatever it was."""
    method, name, reason, arguments = fields_of(data, 4)
    # Lone surrogates too, which JSON can have.
    texts = [each.decode("utf-8", "surrogateescape") for each in (method, name, reason)]
    texts[2] = texts[2].encode("utf-8", "surrogateescape").decode("latin-1")
    try:
        loads(arguments)
    except ValueError:
        arguments = b"{}"
    path = os.path.join(_DIRECTORY.name, "audit")
    clock = Clock()
    log = AuditLog(path, clock, arguments=True, seconds=lambda: 0.0)
    record = AuditRecord(
        *("s", "ok", texts[1]), method=texts[0], name=texts[1], reason=texts[2], arguments=arguments
    )
    log.record(record)
    log.stop()
    with open(path, "rb") as file:
        written = file.read()
    os.unlink(path)
    assert written.endswith(b"\n")
    line = written[:-1].decode("utf-8")
    assert line.isprintable(), "it can be shown in a terminal"
    found = json.loads(line)
    for member, text in zip(("method", "name", "reason"), texts, strict=True):
        plain = text[:AUDIT_TEXT_CHARS].encode("utf-8", "backslashreplace").decode()
        assert found.get(member, "").startswith(plain)
        assert len(text) > AUDIT_TEXT_CHARS or found.get(member) == plain
    if len(arguments) <= AUDIT_ARGUMENT_BYTES:
        assert json.dumps(found["arguments"]) == json.dumps(json.loads(arguments))
    else:
        assert "arguments" not in found
