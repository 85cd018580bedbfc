"""
Who may see and control the bridge at an admin listener.

Knows tokens and their roles; must not know what is seen and controlled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.auth.bearer import UNKNOWN, check_credentials
from mcpbridge.auth.failed_attempts import FailedAttempts
from mcpbridge.auth.named_tokens import NamedTokens
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.config.admin import CONTROL, VIEW, read_admin_tokens
from mcpbridge.config.auth import NamedToken
from mcpbridge.config.settings import BridgeSettings
from mcpbridge.errors import Forbidden, InvalidToken, Unauthorized
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.web.client_addresses import ClientAddresses
from mcpbridge.web.refusals import Delays

_CHALLENGE = 'Bearer realm="mcpbridge admin"'


class Operator(NamedTuple):
    """Somebody who was admitted, by a name for the log."""

    name: str
    role: str


#: Whoever can open a UNIX socket that only the bridge's user can open.
OF_SOCKET = Operator("an operator at the admin socket", CONTROL)


class Operators:
    """
    Admits requests by `admin_tokens`.  Raises `SettingError` for a token's file that is wrong.

    Answers to wrong tokens are delayed, as they are for clients (`FailedAttempts`).
    """

    log = Logger()

    def __init__(self, settings: BridgeSettings, clock: IReactorTime) -> None:
        tokens = read_admin_tokens(settings.admin_tokens)
        self._roles = {name: each.role for name, each in tokens.items()}
        named = {name: NamedToken(sha256=x.sha256, file=x.file) for name, x in tokens.items()}
        self._tokens = NamedTokens(named, "admin_tokens")
        self._clients = ClientAddresses(settings)
        self._delays = Delays(FailedAttempts(clock), clock, self._clients.of_request)
        self._complaints = RateLimitedLog(clock)

    def admit(self, request: Any, role: str) -> Operator | Deferred[Operator]:
        """
        Return who has sent a request of twisted.web, and has this role.

        Raises, or fails with, `Unauthorized`, and `Forbidden` for another role.
        """

        def find() -> Operator:
            try:
                return self._find(request, role)
            except Unauthorized as error:
                error.challenge = _challenge(error)
                self._note(request, error)
                raise

        return self._delays.admitted(request, find)

    def _find(self, request: Any, role: str) -> Operator:
        headers = request.requestHeaders.getAllRawHeaders()
        fields = [(name, value) for name, values in headers for value in values]
        asked = AuthenticationRequest("", request.method, request.uri, fields)
        check_credentials(asked)
        identity = self._tokens.authenticate(asked)
        if identity is None and asked.values("authorization"):
            raise InvalidToken(UNKNOWN)
        if identity is None:
            raise Unauthorized(
                "this needs a token of `admin_tokens`: the header `Authorization: Bearer TOKEN`"
            )
        found = Operator(identity.subject, self._roles[identity.subject])
        if role not in (VIEW, found.role):
            raise Forbidden(
                f"the token of {found.name!r} has the role `{found.role}`, not `{role}`"
            )
        return found

    def _note(self, request: Any, error: Unauthorized) -> None:
        """Log, now and then, that a token was wrong."""
        if not error.is_attempt:
            return
        self._complaints.add()
        count = self._complaints.due()
        if count is not None:
            self.log.warn(
                "a request to the admin listener was refused (from {address}): {reason};"
                " such requests since the last such line: {count}",
                address=self._clients.address(request) or "an unknown address",
                reason=str(error),
                count=count,
            )


def _challenge(error: Unauthorized) -> bytes:
    """Return the value of `WWW-Authenticate` (RFC 6750, section 3)."""
    detail = "" if error.error is None else f', error="{error.error}"'
    return f"{_CHALLENGE}{detail}".encode("ascii")
