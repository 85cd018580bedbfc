"""The dispatcher of stateless requests: the probe for a server's era, and all of it together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.config.tuning import COLLECT_SECONDS
from mcpbridge.errors import BackendFailed, MethodNotFound, ServerBusy
from mcpbridge.mcp.modern_request import PREFIX
from mcpbridge.stateless.dispatcher import ERA_TRIES
from tests.examples import examples
from tests.fakes import VERSION, Call, Legacy, Modern, ScriptedBackend, World


@pytest.mark.parametrize("kind", [Legacy, Modern])
@pytest.mark.parametrize("limit", [1, 4])
def test_era_is_probed_once(kind: type[ScriptedBackend], limit: int) -> None:
    world = World(kind, limit=limit, known=False)
    calls = [world.call(f"{number}") for number in range(5)]
    for _ in range(5):
        world.run(0.5)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(5)]
    assert world.era.modern is (kind is Modern)
    probes = [
        each
        for backend in world.backends
        for each in backend.received
        if each.get("method") == "server/discover"
    ]
    assert len(probes) == 1
    world.end()


@pytest.mark.parametrize("how", ["dies", "mute", "nonsense", "of another time"])
def test_server_without_a_valid_discover_result_is_legacy(how: str) -> None:
    class Odd(Legacy):
        def discover(self, message: dict[str, Any]) -> None:
            if how == "dies":
                self.die()
            elif how == "nonsense":
                self.respond(message["id"], {"supportedVersions": 1})
            elif how == "of another time":
                self.respond(message["id"], {"supportedVersions": ["2099-01-01"]})

    world = World(Odd, limit=1, known=False)
    call = world.call("a")
    world.run(world.settings.probe_timeout)
    world.run(1)
    assert call.result["token"] == "a"
    assert world.era.modern is False
    world.end()


def test_probed_process_that_does_not_exit_delays_nobody() -> None:
    world = World(type("Stays", (Legacy,), {"stop_seconds": 1000.0}), limit=2, known=False)
    call = world.call("a")
    for _ in range(20):
        world.run(1)
    assert call.result["token"] == "a"
    world.stop()
    world.run(1000)
    world.end()


def test_probe_survives_the_client_that_caused_it() -> None:
    world = World(Modern, known=False)
    world.launcher.silent = True
    first, second = world.call("a"), world.call("b")
    world.run()
    world.launcher.silent = False
    first.disconnect()
    world.run(world.settings.probe_timeout)
    for _ in range(4):
        world.run(1)
    assert second.result["token"] == "b"
    world.end()


def test_probe_waits_for_capacity_that_is_about_to_be_free() -> None:
    world = World(Legacy, limit=1, known=False)
    world.call("a").disconnect()
    call = world.call("b")
    for _ in range(4):
        world.run(1)
    assert call.result["token"] == "b"
    world.end()


def test_request_is_refused_when_sessions_use_all_capacity() -> None:
    world = World(Legacy, limit=1, known=False)
    permit = world.limiter.acquire()
    assert permit is not None
    call = world.call("a")
    assert isinstance(call.refusal, ServerBusy)
    assert call.refusal.ident == call.message["id"]
    permit.release()
    world.end()


def test_launch_whose_client_left_serves_the_next_request() -> None:
    world = World(Legacy, limit=1)
    world.launcher.delays_launches = True
    first, second = world.call("a"), world.call("b")
    first.disconnect()
    [(launched, backend)] = world.launcher.waiting
    launched.callback(backend)
    world.run()
    assert second.result["token"] == "b"
    world.end()


def test_capacity_freed_by_another_server_wakes_a_waiting_request() -> None:
    one = World(Legacy)
    one.bridge_limiter.limit = 2
    other = World(Legacy, beside=one)
    one.call("a", "wait")
    blocking = other.call("b", "wait")
    one.run()
    waiting = other.call("c")
    one.run()
    assert not waiting.completions
    one.live[0].die()
    one.run(1)
    assert waiting.result["token"] == "c"
    blocking.disconnect()
    one.stop()
    other.stop()
    one.run(1)
    assert one.bridge_limiter.taken == 0
    assert one.clock.getDelayedCalls() == []


def test_removed_method_is_unknown() -> None:
    world = World(Legacy, known=False)
    call = world.request("ping")
    assert isinstance(call.refusal, MethodNotFound)
    assert world.backends == []
    world.end()


def test_server_of_neither_era_is_given_up() -> None:
    """It fails the probe and the handshake, and nothing is left."""

    class Neither(Modern):
        def discover(self, message: dict[str, Any]) -> None:
            self.respond_with_error(message["id"])

    world = World(Neither, known=False)
    call = world.call("a")
    world.run(1)
    assert isinstance(call.refusal, BackendFailed)
    world.run(1)
    assert world.limiter.taken == 0
    world.end()


@pytest.mark.parametrize("modern", [True, False])
def test_server_whose_era_does_not_last_is_given_up(modern: bool) -> None:
    """`ERA_TRIES`: each process says that it is of the other era; a request tries so many."""

    class Either(Modern):
        def discover(self, message: dict[str, Any]) -> None:
            self.respond_with_error(message["id"])

    world = World(Either, limit=10 * ERA_TRIES)
    world.era.modern = modern
    call = world.call("a")
    for _ in range(2 * ERA_TRIES):
        world.run(1)
    assert isinstance(call.refusal, BackendFailed)
    assert "of no era that lasts" in str(call.refusal)
    assert len(world.backends) == ERA_TRIES
    world.end()


@pytest.mark.parametrize("kinds", [(Legacy, Modern), (Modern, Legacy)])
def test_server_may_change_its_era(
    kinds: tuple[type[ScriptedBackend], type[ScriptedBackend]],
) -> None:
    world = World(kinds[0], known=False)
    old = [world.call(f"{number}", "wait") for number in range(2)]
    world.run(1)
    world.launcher.kind = kinds[1]
    for backend in world.live:
        backend.die()
    new = [world.call(f"{number}") for number in range(3)]
    for _ in range(5):
        world.run(1)
    assert all(each.refusal is not None for each in old)
    assert [each.result["token"] for each in new] == ["0", "1", "2"]
    world.end()


@pytest.mark.parametrize(
    "error",
    [
        {"code": -32022, "data": {"supported": ["2026-07-28"]}},
        {"code": -32022},
        {"code": -32601},
    ],
)
def test_modern_server_taken_for_a_legacy_one_is_detected(
    error: dict[str, Any], log_lines: list[str]
) -> None:
    """It missed the probe's deadline, and refuses the `initialize` that followed."""

    class Newer(Modern):
        def initialize(self, message: dict[str, Any]) -> None:
            self.write({"id": message["id"], "error": {"message": "no", **error}})

    world = World(Newer, known=False)
    world.era.modern = False
    call = world.call("a")
    world.run(1)
    assert call.result["token"] == "a"
    assert world.era.modern is True
    assert "server 'default' is modern now: the server refused initialize: no" in log_lines
    world.end()


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_process_that_cannot_be_written_to_is_ended(kind: type[ScriptedBackend]) -> None:
    """A defect in the backend of an extension's launcher costs no permit."""

    def send(self: ScriptedBackend, line: bytes) -> None:
        raise RuntimeError("a defect")

    world = World(type("Defective", (kind,), {"send": send}), limit=1)
    failed: list[Any] = []
    world.call("a").deferred.addErrback(failed.append)
    world.run(1)
    assert [each.type for each in failed] == [RuntimeError]
    assert world.live == []
    assert world.limiter.taken == 0
    world.end()


class Named(Modern):
    """A modern server that says who it is."""

    def discover(self, message: dict[str, Any]) -> None:
        told = {"supportedVersions": [VERSION], "capabilities": self.capabilities}
        meta = {PREFIX + "serverInfo": {"name": "new", "version": "1"}}
        self.respond(message["id"], {"resultType": "complete", **told, "_meta": meta})


@pytest.mark.parametrize(("kind", "name"), [(Legacy, "old"), (Named, "new")])
def test_server_info_is_remembered(kind: type[ScriptedBackend], name: str) -> None:
    """The server card is made from it."""
    world = World(kind)
    world.call("a")
    world.run(1)
    assert json.loads(world.era.known.info or b"") == {"name": name, "version": "1"}
    world.end()


# All of it together.

CALLS = ("ask", "ask", "echo", "echo", "wait", "listen", "retry", "retry")
ENDS = ("leave", "drop", "finish", "die", "drain")
REST = ("time", "turn", "turn", "long", "mute", "slow")
STEPS = st.lists(
    st.tuples(st.sampled_from(CALLS + ENDS + REST), st.integers(0, 3)),
    min_size=5,
    max_size=60,
)


class Scenario:
    """Several clients, and the events of a random sequence."""

    def __init__(self, kind: type[ScriptedBackend], **changes: Any) -> None:
        self.world = World(kind, limit=3, known=False, queue_timeout=8, input_timeout=30, **changes)
        self.calls: list[tuple[str, Call]] = []
        self.retried: set[str] = set()
        self.count = 0

    def step(self, what: str, which: int) -> None:
        world = self.world
        if what in ("ask", "echo", "wait"):
            self.count += 1
            token = f"token-{self.count}-"
            level = "debug" if which == 3 else None
            call = world.call(token, what, identity="xy"[which % 2], level=level)
            self.calls.append((token, call))
        elif what == "listen":
            self.calls.append(("", world.listen(identity="xy"[which % 2])))
        elif what in ("leave", "drop"):
            running = [
                call for _, call in self.calls if not call.completions and not call.disconnected
            ]
            if running:
                running[which % len(running)].disconnect(aborted=what == "leave")
        elif what == "retry":
            self.retry(which)
        elif what == "time":
            world.run(which / 4)
        elif what == "long":
            world.run(20)
        elif what == "turn":
            world.clock.advance(0)
        elif what == "slow":
            world.launcher.delays_launches = not world.launcher.delays_launches
            while world.launcher.waiting and not world.launcher.delays_launches:
                world.launcher.finish()
        elif world.live:
            self.harm(what, world.live[which % len(world.live)])
        self.check()

    def harm(self, what: str, backend: Any) -> None:
        if what == "die" and backend in self.there():
            backend.die()
        elif what == "drain" and backend in self.there():
            backend.close_input()
        elif what == "mute":
            backend.silent = not backend.silent
        elif what == "finish" and backend.calls and backend in self.there():
            backend.finish(next(iter(backend.calls.values()))["token"])

    def there(self) -> list[Any]:
        """Return the backends that are running."""
        return [session.backend for session in self.world.pool.unclosed]

    def retry(self, which: int) -> None:
        suspended = [
            (token, call)
            for token, call in self.calls
            if call.completions
            and call.lines
            and call.lines[-1].get("result", {}).get("resultType") == "input_required"
        ]
        if suspended:
            token, call = suspended[-1 - which % len(suspended)]
            self.calls.append((token, call.retry(f"for-{token}")))

    def check(self) -> None:
        """Check that no call has another's data and that every process is accounted for."""
        world = self.world
        assert world.limiter.taken == len(world.pool.unclosed) + len(world.pool.launching)
        assert world.limiter.taken <= 3
        for token, call in self.calls:
            assert call.completions <= 1
            for line in call.lines:
                text = str(line)
                others = [other for other, _ in self.calls if other and other != token]
                assert not [other for other in others if other in text]
                if "result" in line:
                    assert line["id"] == call.message["id"]
                    given = line["result"].get("given")
                    assert given in (None, f"for-{token}")

    def finish(self) -> None:
        """Let every process finish, stop the bridge, and check that each remaining call ended."""
        world = self.world
        world.launcher.delays_launches = False
        while world.launcher.waiting:
            world.launcher.finish()
        for _ in range(30):
            world.run(1)
            for backend in self.there():
                backend.silent = False
                for arguments in list(backend.calls.values()):
                    if arguments.get("do") == "wait":
                        backend.finish(arguments["token"])
        self.check()
        world.stop()
        world.run(1)
        for _, call in self.calls:
            assert call.completions == (not call.disconnected)
        world.end()


@settings(max_examples=examples(150))
@given(
    STEPS,
    st.sampled_from([Legacy, Modern]),
    st.sampled_from(["identity", "never"]),
    st.sampled_from([1, 2, 16]),
)
def test_every_call_gets_its_own_answer_and_ends_once(
    steps: list[tuple[str, int]], kind: type[ScriptedBackend], reuse: str, concurrency: int
) -> None:
    """In any sequence of events, and nothing is left at the end."""
    scenario = Scenario(kind, reuse=reuse, concurrency=concurrency)
    for what, which in steps:
        scenario.step(what, which)
    scenario.finish()


def test_scenario_can_ask_and_answer_a_question() -> None:
    """Prove that the steps of the test above do what they are meant to."""
    scenario = Scenario(Legacy)
    for what in ("ask", "time"):
        scenario.step(what, 0)
    scenario.world.run(1)
    scenario.world.run(COLLECT_SECONDS)
    scenario.step("retry", 0)
    scenario.world.run(1)
    assert scenario.calls[-1][1].result["given"] == "for-token-1-"
    scenario.finish()


@pytest.mark.parametrize("kind", [Legacy, Modern])
@pytest.mark.parametrize("shown", [True, False])
def test_stderr_of_a_failed_start_is_in_the_error(kind: type[ScriptedBackend], shown: bool) -> None:
    """If the setting allows it."""

    class Dies(kind):  # type: ignore[misc,valid-type]
        def _receive(self, message: dict[str, Any]) -> None:
            if not self.ended:
                self.receiver.diagnostics_received([b"KEY is not set"])
                self.die()

    world = World(Dies, stderr_in_errors=shown)
    call = world.call("a")
    world.run(1)
    assert isinstance(call.refusal, BackendFailed)
    assert call.refusal.data == ({"stderr": ["KEY is not set"]} if shown else None)
    world.end()


@pytest.mark.parametrize("whose", ["server", "bridge", "limiter"])
def test_log_names_the_limit_that_is_reached(whose: str, log_lines: list[str]) -> None:
    one = World(Legacy, limit=1 if whose == "server" else 4, queue_timeout=0.5)
    if whose == "bridge":
        one.bridge_limiter.limit = 1
    first = one.call("a", "wait")
    one.run()
    if whose == "limiter":
        one.limiter.limit = 1
    second = one.call("b")
    one.run(1)
    assert isinstance(second.refusal, ServerBusy)
    assert first.refusal is None
    [line] = [each for each in log_lines if "is full" in each]
    limits = {
        "server": "its max_sessions is 1",
        "bridge": "the bridge's max_sessions is 1",
        "limiter": "a limiter, or the number that may wait, allows no more",
    }
    assert f"is full: it has 1 processes, and {limits[whose]};" in line
    one.end()


def test_remote_server_that_dies_of_the_probe_is_of_no_known_era() -> None:
    """It could not be asked, and is asked again by the next request."""

    class Unwell(Modern):
        def discover(self, message: dict[str, Any]) -> None:
            self.die()

    world = World(Unwell, known=False, url="http://remote.test/mcp")
    refused = world.call("a")
    world.run(1)
    assert isinstance(refused.refusal, BackendFailed)
    world.launcher.kind = Modern
    call = world.call("b")
    world.run(60)
    assert call.result["token"] == "b", "a legacy server would have been sent `initialize`"
    assert world.era.modern is True
    world.end()
