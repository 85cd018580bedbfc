"""A server that gives the ids of requests back in another spelling."""

import json
from typing import Any

import pytest

from mcpbridge.jsonrpc.envelope import peek
from mcpbridge.mcp.id_restorer import IdRestorer
from mcpbridge.mcp.inflight import MAX_IN_FLIGHT


class Talk:
    """A client and its server."""

    def __init__(self) -> None:
        self.ids = IdRestorer()

    def tell(self, **members: Any) -> None:
        line = json.dumps({"jsonrpc": "2.0", **members}).encode()
        envelope = peek(line)
        assert envelope is not None
        self.ids.from_client(line, envelope)

    def ask(self, *idents: Any) -> None:
        for ident in idents:
            self.tell(id=ident, method="ping")

    def cancel(self, ident: Any) -> None:
        self.tell(method="notifications/cancelled", params={"requestId": ident})

    def answered(self, ident: Any, **members: Any) -> Any:
        """The id that the client sees."""
        members = members or {"result": {}}
        line = json.dumps({"jsonrpc": "2.0", "id": ident, **members}).encode()
        return json.loads(self.ids.from_backend(line))["id"]


@pytest.mark.parametrize(("asked", "said"), [(1, "1"), ("1", 1), (-3, "-3"), (2, 2), ("a", "a")])
def test_an_answer_has_the_clients_id_once(asked: Any, said: Any) -> None:
    talk = Talk()
    talk.ask(asked, 99)
    assert talk.answered(said) == asked
    assert talk.answered(said) == said
    assert len(talk.ids) == 1


@pytest.mark.parametrize("said", ["01", "1.0", 1.5, None, "x", 2])
def test_a_message_that_answers_no_request_is_unchanged(said: Any) -> None:
    talk = Talk()
    talk.ask(1)
    assert talk.answered(said) == said
    assert len(talk.ids) == 1


def test_only_responses_are_changed() -> None:
    """A question of the server's has an id of its own; nor is a batch looked into."""
    talk = Talk()
    talk.ask(1)
    assert talk.answered("1", method="ping") == "1"
    assert talk.ids.from_backend(b"[]") == b"[]"
    assert talk.answered("1", error={"code": 1, "message": ""}) == 1


def test_a_cancelled_request_has_no_answer() -> None:
    talk = Talk()
    talk.ask(1, 2)
    talk.cancel(1)
    talk.tell(method="notifications/initialized")
    assert talk.answered("1") == "1"
    assert talk.answered("2") == 2


@pytest.mark.parametrize("method", ["notifications/a", "notifications/x"])
def test_no_other_notification_cancels_a_request(method: str) -> None:
    talk = Talk()
    talk.ask(1)
    talk.tell(method=method, params={"requestId": 1})
    assert talk.answered("1") == 1


def test_max_in_flight() -> None:
    """MAX_IN_FLIGHT: the oldest is forgotten."""
    talk = Talk()
    talk.ask(*range(MAX_IN_FLIGHT + 1))
    assert len(talk.ids) == MAX_IN_FLIGHT
    assert talk.answered("0") == "0"
    assert talk.answered("1") == 1
