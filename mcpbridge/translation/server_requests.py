"""
The open requests of a legacy server, by the keys that they have in `inputRequests`.

Knows keys and the server's own ids; must not know what is asked.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import msgspec

from mcpbridge.errors import SERVER_ERROR
from mcpbridge.jsonrpc.ids import same_id
from mcpbridge.jsonrpc.members import Members, error_line, result_line, string_of
from mcpbridge.translation.input_requests import (
    MAX_INPUT_REQUESTS,
    CannotAsk,
    InputRequest,
    input_requests,
)

#: The longest id of a server's request that becomes a key, in characters.
MAX_KEY_LENGTH = 128
#: How many ids become keys in one call; later requests get `input-N`.
MAX_NAMED_KEYS = 1024
#: The prefix of the bridge's own keys.
_OWN_KEY = "input-"


class ServerRequest(NamedTuple):
    """A request of the server: its id, as it stands, and what it asks for."""

    ident: msgspec.Raw
    asked: InputRequest


class ServerRequests:
    """The server's requests that the client of the running call has not answered."""

    def __init__(self) -> None:
        self.by_key: dict[str, ServerRequest] = {}
        self._own_keys = 0
        # The server's ids that were keys in this call, answered or not.
        self._named: set[str] = set()

    def start_call(self) -> None:
        """Begin another call, in which the keys of the last one may be used again."""
        self._named.clear()

    def new_key(self, ident: msgspec.Raw | None = None) -> str:
        """
        Return a key that is not used twice in a call, as clients may merge
        the rounds of one.

        It is the id of the server's request where that is a string which is
        unique and may be a key, for the sake of whoever reads logs; otherwise
        it is `input-N`.
        """
        named = string_of(ident)
        if named is not None and self._may_be_key(named):
            self._named.add(named)
            return named
        while True:
            self._own_keys += 1
            key = f"{_OWN_KEY}{self._own_keys}"
            if key not in self._named:
                return key

    def _may_be_key(self, named: str) -> bool:
        if len(self._named) >= MAX_NAMED_KEYS or not 0 < len(named) <= MAX_KEY_LENGTH:
            return False
        # No control characters, lone surrogates or the like.
        if named in self._named or any(unicodedata.category(each)[0] == "C" for each in named):
            return False
        number = named.removeprefix(_OWN_KEY)
        is_own = number != named and number.isascii() and number.isdigit()
        return not (is_own and int(number) <= self._own_keys)

    def add(self, ident: msgspec.Raw, asked: InputRequest) -> None:
        """Keep a request until it is answered.  Raise `CannotAsk` where too many are open."""
        if len(self.by_key) >= MAX_INPUT_REQUESTS:
            raise CannotAsk(f"{MAX_INPUT_REQUESTS} requests are open already")
        self.by_key[self.new_key(ident)] = ServerRequest(ident, asked)

    def input_requests(self) -> msgspec.Raw | None:
        """Return the open ones as the `inputRequests` of a result; None where there are none."""
        if not self.by_key:
            return None
        return input_requests({key: each.asked for key, each in self.by_key.items()})

    def answer(self, responses: Members) -> list[bytes]:
        """Return the lines for the server that answer those of which there is a response."""
        keys = [key for key in self.by_key if key in responses]
        return [result_line(self.by_key.pop(key).ident, responses[key]) for key in keys]

    def cancel(self, ident: msgspec.Raw | None) -> None:
        """Forget a request that the server has cancelled."""
        for key in [key for key, each in self.by_key.items() if same_id(each.ident, ident)]:
            del self.by_key[key]

    def refuse_all(self, why: str) -> list[bytes]:
        """Return the lines for the server that say why nobody will answer."""
        lines = [error_line(each.ident, SERVER_ERROR, why) for each in self.by_key.values()]
        self.by_key.clear()
        return lines
