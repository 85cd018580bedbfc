"""
Any interleaving of a legacy client and a modern backend: each request is
answered once, with its own id, and the backend never reads what 2026-07-28
does not have.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.translation.client_calls import Step
from mcpbridge.translation.legacy_client import LegacyClientTranslator
from tests.examples import examples

PREFIX = "io.modelcontextprotocol/"
METHODS = ("tools/call", "tools/call", "prompts/get", "tools/list", "x/y")
LISTEN = "subscriptions/listen"
REQUESTS: dict[str, Any] = {
    "form": {"method": "elicitation/create", "params": {"message": "?"}},
    "url": {"method": "elicitation/create", "params": {"mode": "url", "url": "x"}},
    "roots": {"method": "roots/list"},
    "sample": {"method": "sampling/createMessage", "params": {}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


class DownwardMachine(RuleBasedStateMachine):
    """The session between two sides that keep books."""

    @initialize(
        capabilities=st.sampled_from(
            [{}, {"elicitation": {}}, {"elicitation": {}, "sampling": {}, "roots": {}}]
        ),
        version=st.sampled_from(["2024-11-05", "2025-11-25"]),
    )
    def start(self, capabilities: Any, version: str) -> None:
        self.session = LegacyClientTranslator(version="1", pause=lambda failures: 1.0)
        self.now = 0.0
        self.due: float | None = None
        self.asked = 0
        #: Of the client: what it waits for, and what it was asked.
        self.waits: dict[str, Any] = {}
        self.questions: list[str] = []
        self.over: set[Any] = set()
        #: Of the backend: what it was asked, and what is over.
        self.open: dict[int, str] = {}
        self.numbers: set[int] = set()
        self.capabilities = capabilities
        params = {"protocolVersion": version, "capabilities": capabilities}
        self.ask("initialize", params, refused=False)
        self.backend(id=1, result={"capabilities": {"tools": {"listChanged": True}}})
        self.client({"method": "notifications/initialized"}, refused=False)

    def take(self, step: Step) -> None:
        for line in step.to_backend:
            self.read_by_backend(json.loads(line))
        for line in step.to_client:
            self.read_by_client(json.loads(line))
        self.due = step.due

    def read_by_backend(self, message: Any) -> None:
        assert message["jsonrpc"] == "2.0"
        assert message.keys() <= {"jsonrpc", "id", "method", "params"}
        if "id" not in message:
            assert message["method"] == "notifications/cancelled"
            assert message["params"]["requestId"] in self.numbers
            self.open.pop(message["params"]["requestId"], None)
            return
        number = message["id"]
        assert type(number) is int
        assert number not in self.numbers
        self.numbers.add(number)
        self.open[number] = message["method"]
        meta = message["params"]["_meta"]
        assert meta[PREFIX + "protocolVersion"] == "2026-07-28"
        assert meta[PREFIX + "clientCapabilities"] == self.capabilities
        assert meta[PREFIX + "clientInfo"] == {"name": "mcpbridge", "version": "1"}

    def read_by_client(self, message: Any) -> None:
        assert message["jsonrpc"] == "2.0"
        if "method" not in message:
            key = json.dumps(message["id"])
            assert key in self.waits, "an answer to nothing, or a second one"
            del self.waits[key]
            assert ("result" in message) != ("error" in message)
            assert "resultType" not in message.get("result", {})
        elif "id" in message:
            capability = message["method"].partition("/")[0]
            assert capability in self.capabilities
            assert message["id"] not in self.over
            self.over.add(message["id"])
            self.questions.append(message["id"])
        elif message["method"] == "notifications/cancelled":
            self.questions.remove(message["params"]["requestId"])
        else:
            assert PREFIX not in json.dumps(message)

    def client(self, members: Any, *, refused: bool) -> bool:
        line, envelope = read_message(json.dumps({"jsonrpc": "2.0", **members}).encode())
        assert envelope is not None
        step = self.session.from_client(line, envelope, self.now)
        assert len(step.to_backend) <= 1
        if refused and step.to_backend:
            self.session.undo(envelope)
            self.due = self.session.due
            return False
        self.take(step)
        return True

    def backend(self, **members: Any) -> None:
        if "method" not in members and type(members.get("id")) is int:
            self.open.pop(members["id"], None)
        line = json.dumps({"jsonrpc": "2.0", **members}).encode()
        self.take(self.session.from_backend(line, self.now))

    def ask(self, method: str, params: Any, *, refused: bool) -> None:
        self.asked += 1
        ident: Any = self.asked if self.asked % 2 else str(self.asked)
        self.waits[json.dumps(ident)] = method
        if not self.client({"id": ident, "method": method, "params": params}, refused=refused):
            del self.waits[json.dumps(ident)]

    # The client.

    @rule(method=st.sampled_from(METHODS), refused=st.booleans())
    def call(self, method: str, refused: bool) -> None:
        self.ask(method, {"name": "n"}, refused=refused)

    @rule(
        method=st.sampled_from(["resources/subscribe", "resources/unsubscribe"]),
        uri=st.sampled_from("abc"),
        refused=st.booleans(),
    )
    def subscribe(self, method: str, uri: str, refused: bool) -> None:
        self.ask(method, {"uri": uri}, refused=refused)

    @rule(method=st.sampled_from(["ping", "tasks/get", "logging/setLevel"]), params=JSON)
    def local(self, method: str, params: Any) -> None:
        self.ask(method, params, refused=True)

    @rule(refused=st.booleans())
    def reply_to_all(self, refused: bool) -> None:
        self.reply_all(refused=refused)

    def reply_all(self, *, refused: bool) -> None:
        for ident in list(self.questions):
            if ident in self.questions:
                self.questions.remove(ident)
                if not self.client({"id": ident, "result": {}}, refused=refused):
                    self.questions.append(ident)

    @rule(data=st.data(), fails=st.booleans(), refused=st.booleans())
    def reply(self, data: st.DataObject, fails: bool, refused: bool) -> None:
        if self.questions:
            ident = data.draw(st.sampled_from(self.questions))
            self.questions.remove(ident)
            answer = {"error": {"code": 1, "message": "m"}} if fails else {"result": {}}
            if not self.client({"id": ident, **answer}, refused=refused):
                self.questions.append(ident)

    @rule(data=st.data(), refused=st.booleans())
    def cancel(self, data: st.DataObject, refused: bool) -> None:
        if self.waits:
            key = data.draw(st.sampled_from(sorted(self.waits)))
            params = {"requestId": json.loads(key)}
            message = {"method": "notifications/cancelled", "params": params}
            method = self.waits.pop(key)
            if not self.client(message, refused=refused):
                self.waits[key] = method

    # The backend.

    @rule(
        data=st.data(),
        result=st.sampled_from([{}, {"resultType": "complete"}, {"resultType": "x"}, 1, None]),
    )
    def answer(self, data: st.DataObject, result: Any) -> None:
        if self.open:
            number = data.draw(st.sampled_from(sorted(self.open)))
            self.backend(id=number, result=result)

    @rule(
        data=st.data(),
        method=st.sampled_from(["tools/call", "prompts/get"]),
        keys=st.sets(st.sampled_from(["form", "url", "form", "roots", "sample"]), max_size=3),
        state=st.sampled_from([None, "s"]),
        odd=st.sampled_from([False, False, False, True]),
        replies=st.booleans(),
    )
    def require(
        self,
        data: st.DataObject,
        method: str,
        keys: set[str],
        state: Any,
        odd: bool,
        replies: bool,
    ) -> None:
        """A call, new or not, comes back with questions."""
        if not any(each == method for each in self.open.values()):
            self.ask(method, {"name": "n"}, refused=False)
        number = data.draw(st.sampled_from([n for n, each in self.open.items() if each == method]))
        requests = {key: REQUESTS[key] for key in sorted(keys)}
        result = {
            "resultType": "input_required",
            "inputRequests": {**requests, "odd": 1} if odd else requests,
            "requestState": state,
        }
        self.backend(id=number, result=result)
        if replies:
            self.reply_all(refused=False)

    @rule(data=st.data(), uris=st.sets(st.sampled_from("abc")), method=st.booleans())
    def tell_of_a_listen(self, data: st.DataObject, uris: set[str], method: bool) -> None:
        listens = [n for n, each in self.open.items() if each == LISTEN]
        number = data.draw(st.sampled_from(listens or sorted(self.numbers)))
        meta = {PREFIX + "subscriptionId": number}
        if method:
            params = {"_meta": meta, "notifications": {"resourceSubscriptions": sorted(uris)}}
            self.backend(method="notifications/subscriptions/acknowledged", params=params)
        else:
            self.backend(method="notifications/tools/list_changed", params={"_meta": meta})

    @rule(message=st.dictionaries(st.sampled_from(["id", "result", "error", "method"]), JSON))
    def babble(self, message: Any) -> None:
        if message.get("method") is None or message.get("id") is not None:
            self.backend(**message)

    @rule(seconds=st.sampled_from([0.0, 0.3, 2.0, 40.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.session.tick(self.now))
        # What was due is done, and not once more.
        assert self.due is None or self.due > self.now

    # Always.

    @invariant()
    def what_waits_is_known_to_somebody(self) -> None:
        """No request is forgotten: somebody is asked about it, or the time will come."""
        if self.waits and not self.open and not self.questions:
            assert self.due is not None


TestDownward = DownwardMachine.TestCase
TestDownward.settings = settings(max_examples=examples(120), stateful_step_count=40, deadline=None)
