"""A message that breaks a server counts against its sender alone."""

from __future__ import annotations

import gc
import json
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    BACKOFF_SECONDS,
    CANARY_JITTER,
    CHECK_SECONDS,
    MAX_BACKOFF_SECONDS,
    SETTLED_SECONDS,
    STILLBORN_STARTS,
)
from mcpbridge.errors import BackendFailed, CannotStart, ServerDown
from mcpbridge.processes.canary import Canary
from mcpbridge.processes.era import ServerEra
from mcpbridge.processes.start_check import neutral_initialize
from mcpbridge.session.negotiation import check_request, first_adapter
from mcpbridge.testing import RecordingSink
from tests.fakes import Call, Legacy, Modern, World

BAD = {"name": "bad", "version": "1"}
GOOD = {"name": "good", "version": "1"}


class Choosy(Legacy):
    """A server that ends, or refuses, when it reads the name of one client."""

    how = "ends"

    def initialize(self, message: dict[str, Any]) -> None:
        if message["params"]["clientInfo"]["name"] != "bad":
            super().initialize(message)
        elif self.how == "ends":
            self.backend_exits()
        elif self.how == "refuses":
            self.respond_with_error(message["id"], -32602)

    def backend_exits(self) -> None:
        self.exit_status = "exit status 7"
        self.die()


class Broken(Choosy):
    """A server that ends at any message."""

    def initialize(self, message: dict[str, Any]) -> None:
        self.backend_exits()


def called(world: World, token: str, info: Any) -> Call:
    call = world.call(token, info=info)
    for _ in range(3):
        world.run(0.5)
    return call


def is_ready(world: World) -> bool:
    return str(world.pool.backoff) == "ready"


@pytest.mark.parametrize("reuse", ["connection", "never"])
@pytest.mark.parametrize("how", ["ends", "refuses", "is mute"])
def test_a_caller_that_breaks_the_server_disturbs_no_other(how: str, reuse: str) -> None:
    """However often it tries, it gets an error, and all others are served."""
    world = World(
        type("Kind", (Choosy,), {"how": how}), limit=20, reuse=reuse, start_timeout=1.0, warm=1
    )
    world.pool.start()
    for number in range(STILLBORN_STARTS + 2):
        bad = called(world, f"bad {number}", BAD)
        good = called(world, f"{number}", GOOD)
        assert isinstance(bad.refusal, BackendFailed)
        assert good.result["token"] == f"{number}"
        assert is_ready(world)
    world.run(CHECK_SECONDS)
    assert is_ready(world)
    world.end()


def opened(world: World) -> Any:
    """Open a session of a legacy client that has not sent anything yet."""
    taken: list[Any] = []
    Deferred.fromCoroutine(world.pool.take()).addBoth(taken.append)
    [session] = taken
    adapter = first_adapter(session, world.era, world.pool.backoff, world.pool.check.doubt)
    session.open(session.forget, sink=RecordingSink(), adapter=adapter)
    return session


def initialized(world: World, info: Any) -> list[Any]:
    """Open a session, send `initialize` with this `clientInfo`, and return the answers."""
    session = opened(world)
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    session.send_to_backend([json.dumps(message).encode()])
    world.run(0.1)
    lines = list(session.sink.lines)
    session.life.end("done")
    world.run(1)
    return lines


def test_many_silent_deaths_in_a_row_cause_a_check() -> None:
    """`STILLBORN_STARTS` of them raise a doubt; the check finds that the server works."""
    world = World(Choosy, limit=4)
    for _ in range(3 * STILLBORN_STARTS + 2):
        assert initialized(world, BAD) == []
        assert is_ready(world)
    [line] = initialized(world, GOOD)
    assert b'"result"' in line
    assert len(world.backends) <= 3 * STILLBORN_STARTS + 3 + 3, "a check for each such row"
    world.end()


def test_a_server_that_fails_the_check_is_down(log_lines: list[str]) -> None:
    world = World(Broken, limit=4)
    for _ in range(STILLBORN_STARTS):
        assert is_ready(world)
        initialized(world, GOOD)
    assert "down after" in str(world.pool.backoff)
    with pytest.raises(ServerDown):
        world.pool.backoff.check(world.clock.seconds() - 0.5)
    world.end()


def test_at_most_one_check_in_check_seconds() -> None:
    world = World(Choosy, limit=20)
    for number in range(20):
        world.call(f"{number}", info=BAD)
        world.run()
    heard = [json.dumps(each.received[:1]) for each in world.backends]
    assert sum('"mcpbridge"' in each for each in heard) == 1
    world.run(CHECK_SECONDS)
    heard = [json.dumps(each.received[:1]) for each in world.backends]
    assert sum('"mcpbridge"' in each for each in heard) == 2
    for _ in range(5):
        world.run(CHECK_SECONDS)
    assert len(world.backends) <= 23
    assert is_ready(world)
    world.end()


def test_a_check_waits_for_a_permit() -> None:
    world = World(Choosy, limit=1)
    bad = world.call("a", info=BAD)
    world.run()
    assert isinstance(bad.refusal, BackendFailed)
    assert len(world.backends) == 1
    world.run(1)
    world.run(1)
    assert len(world.backends) == 2
    assert world.limiter.taken == 0
    world.end()


@pytest.mark.parametrize("fails", ["mute", "launch", "takes nothing"])
def test_a_server_that_fails_the_check_and_its_callers(fails: str) -> None:
    world = World(Choosy, limit=4, start_timeout=2.0)
    world.call("a", info=BAD)
    if fails == "launch":
        world.launcher.error = CannotStart("no such program")
    elif fails == "mute":
        world.launcher.silent = True
    else:
        world.launcher.kind = type("Deaf", (Choosy,), {"ended": True, "__init__": _deaf})
    world.run()
    world.run(2)
    assert "down after" in str(world.pool.backoff)
    world.run(1)
    world.end()
    # Nothing is left that nobody handles.
    gc.collect()


def _deaf(self: Any, *arguments: Any) -> None:
    Choosy.__init__(self, *arguments)
    self.ended = True


def test_a_success_during_the_check_overrides_its_failure() -> None:
    world = World(Choosy, limit=4, start_timeout=2.0)
    world.call("a", info=BAD)
    world.launcher.silent = True
    world.run(0.5)
    world.launcher.silent = False
    good = world.call("b", info=GOOD)
    world.run(3)
    assert good.result["token"] == "b"
    assert is_ready(world)
    world.end()


def test_clients_are_refused_while_a_server_that_was_down_is_checked() -> None:
    """They are told when to retry, so that a server that starts slowly is not tried by all."""
    world = World(Choosy, limit=4, start_timeout=2.0)
    world.launcher.silent = True
    world.call("a", info=GOOD)
    world.run(2)
    world.run(2)
    assert "down after 1" in str(world.pool.backoff)
    world.run(1)
    world.call("b", info=GOOD)
    for _ in range(4):
        world.run(1)
    if not world.pool.backoff.in_doubt:
        world.run(1)
    late = world.call("c", info=GOOD)
    assert isinstance(late.refusal, ServerDown)
    world.run(10)
    world.end()


@pytest.mark.parametrize("seconds", [0.0, 0.2, CHECK_SECONDS])
def test_stopping_during_a_check(seconds: float) -> None:
    world = World(Choosy, limit=4)
    world.call("a", info=BAD)
    world.run()
    world.call("b", info=BAD)
    world.launcher.silent = True
    world.clock.advance(seconds)
    world.end()


def test_the_check_sends_a_request_of_the_known_era() -> None:
    era = ServerEra()
    assert check_request(era) == neutral_initialize()
    assert json.loads(check_request(era))["params"]["clientInfo"]["name"] == "mcpbridge"
    era.modern = True
    assert json.loads(check_request(era))["method"] == "server/discover"
    era.legacy = True
    assert json.loads(check_request(era))["method"] == "initialize"


# A server that is known to fail is checked without a client.


def is_missing(world: World) -> bool:
    return world.pool.cannot_start is not None


def failing(world: World) -> World:
    """Let a server fail its first start."""
    world.launcher.kind = Broken
    world.pool.fail("it crashed")
    return world


@pytest.mark.parametrize("warm", [0, 1])
def test_a_failing_server_recovers_without_a_client(warm: int) -> None:
    """Each pause ends with a check; where processes are kept ready, these have a few seconds."""
    world = failing(World(Choosy, limit=4, warm=warm))
    world.run(BACKOFF_SECONDS + warm * SETTLED_SECONDS)
    assert world.pool.backoff.failures == 2
    world.launcher.kind = Choosy
    world.run(2 * BACKOFF_SECONDS + warm * SETTLED_SECONDS)
    assert is_ready(world)
    world.run(1)
    world.run(1000)
    assert len(world.backends) == 2
    world.end()


@pytest.mark.parametrize("settings", [{}, {"env_from": {"TOKEN": {"header": "x-token"}}}])
def test_a_program_that_is_missing_is_looked_for_without_a_client(settings: Any) -> None:
    """Clients are not told to wait for it; with `env_from` nobody but a client can try it."""
    world = World(Choosy, limit=4, **settings)
    world.launcher.error = CannotStart("no such program")
    failed: list[Any] = []
    Deferred.fromCoroutine(world.pool.take()).addErrback(failed.append)
    assert failed
    assert is_missing(world)
    for _ in range(5):
        world.run(MAX_BACKOFF_SECONDS)
        assert str(world.pool.backoff) == "ready", "no client is told to wait"
        assert is_missing(world)
    world.launcher.error = None
    world.run(2 * MAX_BACKOFF_SECONDS)
    assert is_missing(world) is bool(settings)
    world.end()


def missing(world: World) -> World:
    """Let a client find out that the program is missing."""
    world.launcher.error = CannotStart("no such program")
    Deferred.fromCoroutine(world.pool.take()).addErrback(lambda _: None)
    assert is_missing(world)
    world.launcher.error = None
    return world


def test_a_program_that_is_there_again_and_crashes_is_a_failed_start() -> None:
    world = missing(World(Broken, limit=4))
    world.run(BACKOFF_SECONDS + 1)
    assert not is_missing(world)
    assert not is_ready(world)
    world.end()


def test_the_pauses_begin_anew_once_a_server_has_worked() -> None:
    world = World(Choosy, limit=4)
    for number in range(3):
        before = len(world.backends)
        missing(world)
        world.run(BACKOFF_SECONDS + 1)
        assert not is_missing(world), number
        assert len(world.backends) == before + 1
    # A client finds out first, before the pause is over.
    missing(world)
    assert called(world, "a", GOOD).result["token"] == "a"
    missing(world)
    world.run(BACKOFF_SECONDS + 1)
    assert not is_missing(world)
    # A long pause does not outlast the failure that it was for.
    for _ in range(8):
        world.pool.backoff.failed(world.clock.seconds(), "it crashed")
        world.clock.advance(MAX_BACKOFF_SECONDS + 1)
    world.launcher.kind = Broken
    world.pool.fail("it crashed")
    world.pool.backoff.succeeded()
    world.pool.fail("it crashed")
    world.launcher.kind = Choosy
    world.run(BACKOFF_SECONDS + 1)
    assert is_ready(world)
    world.end()


def test_a_defect_of_a_launcher_does_not_end_the_checks(logged_failures: list[Any]) -> None:
    world = failing(World(Choosy, limit=4))
    world.launcher.kind = cast("Any", None)
    world.run(BACKOFF_SECONDS)
    assert not is_ready(world)
    assert len(logged_failures) == 1
    world.launcher.kind = Choosy
    world.run(2 * BACKOFF_SECONDS)
    assert is_ready(world)
    world.end()


def test_a_check_gives_way_to_a_client() -> None:
    """With one permit for both, the client gets it, and the check is made up for later."""
    world = failing(World(Legacy, limit=1))
    world.launcher.kind = Legacy
    world.launcher.silent = True
    world.run(BACKOFF_SECONDS)
    assert world.pool.check.process is not None
    world.run(CHECK_SECONDS)
    world.launcher.silent = False
    call = world.call("a")
    world.run(1)
    assert call.result["token"] == "a"
    assert is_ready(world)
    world.end()


def test_a_check_that_gave_way_proves_nothing() -> None:
    world = World(Choosy, limit=1)
    world.call("a", info=BAD)
    world.launcher.silent = True
    world.run(1)
    assert world.pool.check.process is not None
    world.launcher.silent = False
    call = world.call("b", info=GOOD)
    world.run(1)
    assert call.result["token"] == "b"
    assert is_ready(world)
    world.end()


def test_clients_wait_check_seconds_for_the_outcome_of_a_check() -> None:
    """Then they may try a server that starts slowly: they may have more patience."""
    world = failing(World(Legacy, limit=4, start_timeout=30.0))
    world.launcher.kind = Legacy
    world.launcher.silent = True
    world.run(BACKOFF_SECONDS)
    assert isinstance(called(world, "a", GOOD).refusal, ServerDown)
    world.run(CHECK_SECONDS)
    world.launcher.silent = False
    assert called(world, "b", GOOD).result["token"] == "b"
    world.end()


def test_no_permit_for_a_check_of_a_failing_server() -> None:
    """It is tried again after a while; a process that is kept ready proves enough then."""
    world = failing(World(Choosy, limit=1, warm=1))
    world.launcher.kind = Choosy
    world.pool.start()
    for _ in range(20):
        world.run(1)
    assert len(world.pool.spares) == 1
    assert is_ready(world)
    world.end()


def test_a_failing_server_without_permits_is_tried_again_later() -> None:
    world = failing(World(Choosy, limit=1))
    permit = world.pool.acquire()
    for _ in range(10):
        world.run(1)
    assert not is_ready(world)
    assert world.backends == []
    permit.release()
    world.launcher.kind = Choosy
    world.run(CHECK_SECONDS)
    assert is_ready(world)
    world.end()


# The canary.


def test_the_canary_checks_a_server_that_nobody_uses() -> None:
    world = World(Choosy, limit=2, canary_interval=60.0)
    world.pool.start()
    world.run(1)
    for number in range(1, 4):
        assert len(world.backends) == number
        world.run(60)
    assert is_ready(world)
    world.launcher.kind = Broken
    world.run(60)
    assert "down after 1 failed start" in str(world.pool.backoff)
    before = len(world.backends)
    world.run(BACKOFF_SECONDS)
    assert len(world.backends) == before + 1, "the backoff decides now"
    world.stop()
    world.run(1000)
    assert len(world.backends) == before + 1
    world.clock.advance(0)
    assert world.clock.getDelayedCalls() == []


def test_the_canary_leaves_a_permit_for_a_client() -> None:
    world = World(Choosy, limit=2, canary_interval=60.0)
    world.pool.start()
    permit = world.pool.acquire()
    world.run(200)
    assert world.backends == []
    permit.release()
    world.run(60)
    assert len(world.backends) == 1
    world.end()


def test_the_canary_trusts_the_answers_of_clients() -> None:
    clock, results, checks = Clock(), [0], list[float]()
    canary = Canary(
        ServerSettings(command="x", canary_interval=100.0),
        clock,
        lambda: checks.append(clock.seconds()),
        lambda: results[0],
        jitter=lambda: 0.5,
    )
    canary.start()
    clock.advance(50)
    assert checks == [50]
    results[0] += 1
    pause = 100 * (1 - CANARY_JITTER / 2)
    clock.advance(pause)
    assert checks == [50]
    clock.advance(pause)
    assert checks == [50, 50 + 2 * pause]
    canary.stop()
    assert clock.getDelayedCalls() == []


def test_the_canary_trusts_no_answers_that_may_be_of_older_processes() -> None:
    clock, results, checks = Clock(), list[int | None]([5]), list[float]()
    canary = Canary(
        ServerSettings(command="x", canary_interval=100.0),
        clock,
        lambda: checks.append(clock.seconds()),
        lambda: results[-1],
        jitter=lambda: 0.0,
    )
    canary.start()
    for found in (None, None, 7, 9):
        results.append(found)
        clock.advance(0 if not checks else 100)
    assert checks == [0, 100, 200]
    canary.stop()


def test_a_pool_that_is_retired_or_has_no_canary_checks_nothing() -> None:
    for interval in (0.0, 10.0):
        world = World(Choosy, limit=2, canary_interval=interval)
        world.pool.start()
        world.pool.retire()
        world.run(1000)
        assert world.backends == []
        world.end()


# What the answers of one session tell of the server's era.


@pytest.mark.parametrize("kind", [Legacy, Modern])
def test_an_ambiguous_answer_decides_nothing_for_the_server(kind: Any) -> None:
    """Of two requests with one id, either answer may look like that of `initialize`."""
    world = World(kind, limit=4)
    session = opened(world)
    both: list[dict[str, Any]] = [
        {"method": "no/such"},
        {"method": "initialize", "params": {"clientInfo": GOOD}},
    ]
    lines = [json.dumps({"jsonrpc": "2.0", "id": 1, **each}).encode() for each in both]
    session.send_to_backend(lines)
    session.messages_received(
        [b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no such method"}}']
    )
    assert world.era.legacy is None
    world.run(1)
    session.life.end("done")
    world.run(1)
    world.end()
