"""The way in for requests of no session: the era of a server, and all of it together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpbridge.config.tuning import COLLECT_SECONDS
from mcpbridge.errors import BackendFailed, MethodNotFound, ServerBusy
from tests.examples import examples
from tests.fakes import Call, Legacy, Modern, Scripted, World


@pytest.mark.parametrize("kind", [Legacy, Modern])
@pytest.mark.parametrize("limit", [1, 4])
def test_the_era_is_found_out_once(kind: type[Scripted], limit: int) -> None:
    world = World(kind, limit=limit, known=False)
    calls = [world.call(f"{number}") for number in range(5)]
    for _ in range(5):
        world.run(0.5)
    assert [each.result["token"] for each in calls] == [f"{number}" for number in range(5)]
    assert world.era.modern is (kind is Modern)
    probes = [
        each
        for backend in world.backends
        for each in backend.heard
        if each.get("method") == "server/discover"
    ]
    assert len(probes) == 1
    world.end()


@pytest.mark.parametrize("how", ["dies", "mute", "nonsense", "of another time"])
def test_no_good_answer_is_an_older_server(how: str) -> None:
    class Odd(Legacy):
        def discover(self, message: dict[str, Any]) -> None:
            if how == "dies":
                self.die()
            elif how == "nonsense":
                self.answer(message["id"], {"supportedVersions": 1})
            elif how == "of another time":
                self.answer(message["id"], {"supportedVersions": ["2099-01-01"]})

    world = World(Odd, limit=1, known=False)
    call = world.call("a")
    world.run(world.settings.probe_timeout)
    world.run(1)
    assert call.result["token"] == "a"
    assert world.era.modern is False
    world.end()


def test_a_process_that_does_not_go_away() -> None:
    """Nobody waits for its end for ever."""
    world = World(type("Stays", (Legacy,), {"stop_seconds": 1000.0}), limit=2, known=False)
    call = world.call("a")
    for _ in range(20):
        world.run(1)
    assert call.result["token"] == "a"
    world.stop()
    world.run(1000)
    world.end()


def test_who_finds_out_leaves() -> None:
    world = World(Modern, known=False)
    world.launcher.mute = True
    first, second = world.call("a"), world.call("b")
    world.run()
    world.launcher.mute = False
    first.leave()
    world.run(world.settings.probe_timeout)
    for _ in range(4):
        world.run(1)
    assert second.result["token"] == "b"
    world.end()


def test_a_place_is_about_to_be_free() -> None:
    """Finding out waits for it, too."""
    world = World(Legacy, limit=1, known=False)
    world.call("a").leave()
    call = world.call("b")
    for _ in range(4):
        world.run(1)
    assert call.result["token"] == "b"
    world.end()


def test_sessions_have_all_places() -> None:
    world = World(Legacy, limit=1, known=False)
    permit = world.limiter.acquire()
    assert permit is not None
    call = world.call("a")
    assert isinstance(call.refusal, ServerBusy)
    assert call.refusal.ident == call.message["id"]
    permit.release()
    world.end()


def test_a_place_that_was_not_used_is_for_the_next() -> None:
    """Whoever had it left while its process was being started, and that goes on."""
    world = World(Legacy, limit=1)
    world.launcher.slow = True
    first, second = world.call("a"), world.call("b")
    first.leave()
    [(launched, backend)] = world.launcher.waiting
    launched.callback(backend)
    world.run()
    assert second.result["token"] == "b"
    world.end()


def test_a_place_that_another_server_has_left() -> None:
    """Who waits for one of all places is told, wherever it becomes free."""
    one = World(Legacy)
    one.bridge_limiter.limit = 2
    other = World(Legacy, beside=one)
    one.call("a", "wait")
    blocking = other.call("b", "wait")
    one.run()
    waiting = other.call("c")
    one.run()
    assert not waiting.ends
    one.live[0].die()
    one.run(1)
    assert waiting.result["token"] == "c"
    blocking.leave()
    one.stop()
    other.stop()
    one.run(1)
    assert one.bridge_limiter.taken == 0
    assert one.clock.getDelayedCalls() == []


def test_what_is_no_more() -> None:
    world = World(Legacy, known=False)
    call = world.request("ping")
    assert isinstance(call.refusal, MethodNotFound)
    assert world.backends == []
    world.end()


def test_a_server_of_no_era() -> None:
    """It says now this, now that: it is given up, and nothing is left."""

    class Neither(Modern):
        def discover(self, message: dict[str, Any]) -> None:
            self.refuse(message["id"])

    world = World(Neither, known=False)
    call = world.call("a")
    world.run(1)
    assert isinstance(call.refusal, BackendFailed)
    world.run(1)
    assert world.limiter.taken == 0
    world.end()


@pytest.mark.parametrize("kinds", [(Legacy, Modern), (Modern, Legacy)])
def test_a_server_that_changes_under_way(kinds: tuple[type[Scripted], type[Scripted]]) -> None:
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
def test_a_newer_server_that_was_taken_for_an_older_one(error: dict[str, Any]) -> None:
    """It was silent for longer than a probe; so it was told `initialize`, which it refuses."""

    class Newer(Modern):
        def initialize(self, message: dict[str, Any]) -> None:
            self.say({"id": message["id"], "error": {"message": "no", **error}})

    world = World(Newer, known=False)
    world.era.modern = False
    call = world.call("a")
    world.run(1)
    assert call.result["token"] == "a"
    assert world.era.modern is True
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


class Crowded:
    """Several callers, and all that happens to them."""

    def __init__(self, kind: type[Scripted], **changes: Any) -> None:
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
            running = [call for _, call in self.calls if not call.ends and not call.gone]
            if running:
                running[which % len(running)].leave(aborted=what == "leave")
        elif what == "retry":
            self.retry(which)
        elif what == "time":
            world.run(which / 4)
        elif what == "long":
            world.run(20)
        elif what == "turn":
            world.clock.advance(0)
        elif what == "slow":
            world.launcher.slow = not world.launcher.slow
            while world.launcher.waiting and not world.launcher.slow:
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
            backend.mute = not backend.mute
        elif what == "finish" and backend.calls and backend in self.there():
            backend.finish(next(iter(backend.calls.values()))["token"])

    def there(self) -> list[Any]:
        """Those that were launched, and may speak."""
        return [session.backend for session in self.world.pool.unclosed]

    def retry(self, which: int) -> None:
        parked = [
            (token, call)
            for token, call in self.calls
            if call.ends
            and call.lines
            and call.lines[-1].get("result", {}).get("resultType") == "input_required"
        ]
        if parked:
            token, call = parked[-1 - which % len(parked)]
            self.calls.append((token, call.retry(f"for-{token}")))

    def check(self) -> None:
        """Nobody has what is another's, and no process is unaccounted for."""
        world = self.world
        assert world.limiter.taken == len(world.pool.unclosed) + len(world.pool.launching)
        assert world.limiter.taken <= 3
        for token, call in self.calls:
            assert call.ends <= 1
            for line in call.lines:
                text = str(line)
                others = [other for other, _ in self.calls if other and other != token]
                assert not [other for other in others if other in text]
                if "result" in line:
                    assert line["id"] == call.message["id"]
                    given = line["result"].get("given")
                    assert given in (None, f"for-{token}")

    def finish(self) -> None:
        """Whoever is still there gets an end, when the processes are set free, or die."""
        world = self.world
        world.launcher.slow = False
        while world.launcher.waiting:
            world.launcher.finish()
        for _ in range(30):
            world.run(1)
            for backend in self.there():
                backend.mute = False
                for arguments in list(backend.calls.values()):
                    if arguments.get("do") == "wait":
                        backend.finish(arguments["token"])
        self.check()
        world.stop()
        world.run(1)
        for _, call in self.calls:
            assert call.ends == (not call.gone)
        world.end()


@settings(max_examples=examples(150))
@given(
    STEPS,
    st.sampled_from([Legacy, Modern]),
    st.sampled_from(["identity", "never"]),
    st.sampled_from([1, 2, 16]),
)
def test_whatever_happens(
    steps: list[tuple[str, int]], kind: type[Scripted], reuse: str, concurrency: int
) -> None:
    """Each gets what is its own, and one end; and at the end nothing is left."""
    crowded = Crowded(kind, reuse=reuse, concurrency=concurrency)
    for what, which in steps:
        crowded.step(what, which)
    crowded.finish()


def test_a_question_and_its_answer() -> None:
    """That the steps are what they are taken for."""
    crowded = Crowded(Legacy)
    for what in ("ask", "time"):
        crowded.step(what, 0)
    crowded.world.run(1)
    crowded.world.run(COLLECT_SECONDS)
    crowded.step("retry", 0)
    crowded.world.run(1)
    assert crowded.calls[-1][1].result["given"] == "for-token-1-"
    crowded.finish()


@pytest.mark.parametrize("kind", [Legacy, Modern])
@pytest.mark.parametrize("shown", [True, False])
def test_what_a_server_that_cannot_start_has_said(kind: type[Scripted], shown: bool) -> None:
    """Its last words are in the error where the setting allows it."""

    class Dies(kind):  # type: ignore[misc,valid-type]
        def _hear(self, message: dict[str, Any]) -> None:
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
def test_the_log_says_which_limit_is_reached(whose: str, log_lines: list[str]) -> None:
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
