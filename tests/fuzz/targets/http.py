"""Requests as they come from a connection."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from mcpbridge.auth.access import Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.identity import NAMED_TOKEN, Identity
from mcpbridge.auth.named_tokens import NamedTokens
from mcpbridge.auth.scopes import ScopeRules
from mcpbridge.config.auth import NamedToken
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS
from mcpbridge.errors import Refused
from mcpbridge.web.client_addresses import FORWARDED, FORWARDED_FOR, ClientAddresses
from mcpbridge.web.request_parser import MAX_HEAD_BYTES, ReceivedRequest, RequestParser
from tests.fuzz.targets import fields_of, pieces_of, target
from tests.unit.web.test_fast_path import World


def _seen(request: ReceivedRequest) -> tuple[object, ...]:
    head, refusal = request.head, request.refusal
    assert refusal is None or isinstance(refusal, Refused)
    assert refusal is None or not request.body, "a refused request has no body"
    return (
        *(head.method, head.target, head.version, head.fields, head.persistent, head.chunked),
        *(head.expects_continue, request.content_length, request.body, type(refusal)),
    )


def _parsed(pieces: list[bytes]) -> tuple[list[tuple[object, ...]], RequestParser]:
    parser = RequestParser()
    for piece in pieces:
        parser.feed(piece)
        assert parser.slice_size > 0
    return [_seen(each) for each in parser.ready], parser


@target
def http_requests(data: bytes) -> None:
    """The same bytes are the same requests, however they are split, and once more."""
    seed, stream = fields_of(data, 2)
    if len(stream) > MAX_HEAD_BYTES // 2:
        # The limits count what comes at once as one, so they depend on the pieces.
        return
    whole, parser = _parsed([stream])
    split, other = _parsed(pieces_of(stream, seed))
    assert split == whole
    assert other.closed == parser.closed
    waiting, begun = parser.receiving, other.receiving
    assert (waiting is None) == (begun is None)
    if waiting is not None and begun is not None:
        assert _seen(begun) == _seen(waiting)
    for request in parser.ready[:-1]:
        assert request.refusal is None, "what is refused is the last"
    if whole and not parser.closed and not parser.has_begun:
        # A head that is known is not parsed again.
        again, _ = _parsed([stream, stream])
        assert again == whole * 2


def _compare_paths(data: bytes, **settings: Any) -> None:
    """Give the same bytes to both paths, and compare all that clients and backends see."""
    seed, stream = fields_of(data, 2)
    seen = []
    for way in (True, False):
        world = World(fast_path=way, **settings)
        for piece in pieces_of(stream, seed) if seed else [stream]:
            if not world.transport.disconnecting:
                world.channel.dataReceived(piece)
                world.let_turns_pass()
        world.answer_modern()
        world.clock.advance(COMMIT_SECONDS)
        world.say(b'{"jsonrpc":"2.0","id":1,"result":{}}')
        seen.append(world.seen())
        world.channel.connectionLost()
        assert world.site.budget.used == 0
        assert not world.streamable.router.has_sinks
    assert seen[0] == seen[1]


@target
def fast_path(data: bytes) -> None:
    """The fast path and twisted.web respond to the same bytes in the same way."""
    _compare_paths(data)


#: The token of each caller, and its scopes.  The sessions are Alice's.
_CALLERS = {
    "alice": ("alice-0123456789abcdef", ("read", "write")),
    "bob": ("bobby-0123456789abcdef", ("read",)),
    "carol": ("carol-0123456789abcdef", ()),
}


def _access_control(clock: Clock) -> AccessControl:
    tokens = {
        name: NamedToken(sha256=sha256(token.encode()).hexdigest(), scopes=scopes)
        for name, (token, scopes) in _CALLERS.items()
    }
    rules = ScopeRules({"*": "read", "x": "write"})
    return AccessControl("default", [NamedTokens(tokens)], rules=rules, clock=clock)


@target
def fast_path_access(data: bytes) -> None:
    """Both admit the same callers, to their own sessions and to what their scopes allow."""
    alice = Identity(issuer=NAMED_TOKEN, subject="alice", scopes=frozenset(("read", "write")))
    access = Access(alice, scopes=alice.scopes)
    _compare_paths(data, access_control=_access_control, access=access)


_ADDRESSES = ClientAddresses(
    BridgeSettings(servers=(ServerSettings(command="x"),), trusted_proxies=("10.0.0.0/8",))
)
_PROXY = IPv4Address("TCP", "10.0.0.1", 1)
_OTHER = IPv4Address("TCP", "192.0.2.9", 1)
_CLIENT = "203.0.113.7"
_UNSURE = "a client of 10.0.0.1"


@target
def client_addresses(data: bytes) -> None:
    """What a client writes never hides the address that its proxy has appended."""
    first, second = (each.decode("latin-1") for each in fields_of(data, 2))
    proxied = {
        FORWARDED_FOR: [first, f"{second}, {_CLIENT}"],
        FORWARDED: [second, f"{first}, for={_CLIENT}"],
    }
    for appends, forges in ((FORWARDED_FOR, FORWARDED), (FORWARDED, FORWARDED_FOR)):
        for forged in ([], [first], [first, second]):
            fields = {appends: proxied[appends], forges: forged}
            client = _ADDRESSES.client(_ADDRESSES.peer(_PROXY), fields.__getitem__)
            address = _ADDRESSES.address_behind(_PROXY, fields.__getitem__)
            assert client in ((_CLIENT, _UNSURE) if forged else (_CLIENT,))
            assert address in ((_CLIENT, None) if forged else (_CLIENT,))
            # Who is no proxy is believed nothing.
            assert _ADDRESSES.client(_ADDRESSES.peer(_OTHER), fields.__getitem__) == _OTHER.host
            assert _ADDRESSES.address_behind(_OTHER, fields.__getitem__) == _OTHER.host
