"""The process pool: permits, spare processes, capacity and failed starts."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    COMPLAIN_SECONDS,
    LAUNCH_SECONDS,
    MAX_BACKOFF_SECONDS,
    SETTLED_SECONDS,
    SPARE_OUTPUT_BYTES,
    STARVED_SECONDS,
    STOP_SLACK_SECONDS,
    WARM_SECONDS,
    WARM_STAGGER_SECONDS,
)
from mcpbridge.errors import (
    BackendFailed,
    CannotStart,
    OutOfResources,
    ServerDown,
    ShuttingDown,
    TooManySessions,
)
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.permits import BridgeLimiter, CombinedLimiter, SessionLimiter
from mcpbridge.processes.pool import ProcessPool
from mcpbridge.stdio.backend import StdioBackend
from mcpbridge.testing import FakeBackend, FakeLauncher, FakeReactor, FakeTree, RecordingSink
from tests.examples import examples
from tests.fakes import no_jitter

NOTES = [b'{"jsonrpc":"2.0","method":"notifications/%d"}' % number for number in range(4)]


class SlowLauncher(FakeLauncher):
    """A launcher whose backends start when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.launching: list[tuple[Deferred[FakeBackend], FakeBackend]] = []

    def launch(self, receiver: Any, label: str) -> Deferred[FakeBackend]:
        self.backends.append(FakeBackend(receiver, label))
        self.launching.append((Deferred(), self.backends[-1]))
        return self.launching[-1][0]

    def finish(self, index: int = 0) -> None:
        launched, backend = self.launching.pop(index)
        launched.callback(backend)


class Pooled:
    """A pool with a fake launcher."""

    def __init__(
        self,
        limit: int = 2,
        bridge_limiter: SessionLimiter | None = None,
        clock: Clock | None = None,
        launcher: Any = None,
        pools: list[ProcessPool] | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.launcher: Any = launcher or FakeLauncher()
        self.bridge_limiter = bridge_limiter or SessionLimiter(1000)
        self.limiter = SessionLimiter(limit)
        self.pool = ProcessPool(
            ServerSettings(command="cat", max_sessions=limit, **options),
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=CombinedLimiter(self.bridge_limiter, self.limiter),
            bridge_limiter=self.bridge_limiter,
            pools=pools,
        )
        self.pool.start()

    @property
    def backends(self) -> list[Any]:
        return list(self.launcher.backends)

    @property
    def taken(self) -> int:
        return self.limiter.taken

    def take(self) -> BackendSession:
        [result] = self.taking()
        if isinstance(result, Failure):
            result.raiseException()
        session: BackendSession = result
        return session

    def taking(self) -> Taking:
        return Taking(self.pool.take())

    def warmed(self) -> Pooled:
        self.clock.pump([WARM_SECONDS] * self.pool.settings.warm)
        assert self.taken == self.pool.settings.warm
        return self

    def check(self) -> None:
        """Nothing is held that is not there."""
        assert self.taken == len(self.pool.unclosed) + len(self.pool.launching)
        assert self.taken <= self.limiter.limit


class Taking(list[Any]):
    """A call of `take`, and its result once there is one."""

    def __init__(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> None:
        self.deferred = Deferred.fromCoroutine(coroutine).addBoth(self.append)

    @property
    def failed(self) -> type[object]:
        [failure] = self
        assert isinstance(failure, Failure)
        return type(failure.value)


def end(session: BackendSession) -> None:
    session.life.end("over")
    close(session)


def close(session: BackendSession) -> None:
    if not session.backend.stopped.called:
        session.backend.stopped.callback(None)


# Taking.


def test_a_process_holds_a_permit_until_it_is_gone() -> None:
    made = Pooled(limit=1)
    session = made.take()
    assert (made.taken, made.pool.unclosed) == (1, {session})
    with pytest.raises(TooManySessions):
        made.take()
    session.life.end("over")
    assert made.taken == 1
    close(session)
    assert (made.taken, made.pool.unclosed) == (0, set())
    assert made.clock.getDelayedCalls() == []


@pytest.mark.parametrize("error", [CannotStart("not found"), RuntimeError("a defect")])
def test_a_failed_launch_holds_no_permit(error: Exception) -> None:
    """A failed launch for a client does not set the server down for others."""
    made = Pooled()
    made.launcher.error = error
    assert made.taking().failed is (
        BackendFailed if isinstance(error, CannotStart) else RuntimeError
    )
    assert (made.taken, str(made.pool.backoff)) == (0, "ready")


def test_exhausted_descriptors_are_logged_once_a_minute(log_lines: list[str]) -> None:
    """promise: a flood of clients without descriptors does not fill the log."""
    made = Pooled()
    made.launcher.error = OutOfResources("no descriptors")
    for _ in range(100):
        assert made.taking().failed is BackendFailed
    start = "server 'default' cannot start backends: no descriptors; refused since"
    assert log_lines == [f"{start} the last such line: 1"]
    made.clock.advance(COMPLAIN_SECONDS)
    assert made.taking().failed is BackendFailed
    assert log_lines[1:] == [f"{start} the last such line: 100"]
    assert made.taken == 0


@pytest.mark.parametrize("chained", [False, True])
def test_a_launch_times_out(chained: bool, log_lines: list[str]) -> None:
    """Also where the launcher's Deferred has fired with another Deferred."""
    made = Pooled()
    if chained:
        made.launcher.launch = lambda *_: succeed(None).addCallback(lambda _: Deferred())
    else:
        made.launcher.launch = lambda *_: Deferred()
    taking = made.taking()
    made.clock.advance(LAUNCH_SECONDS)
    assert taking.failed is BackendFailed
    [line] = log_lines
    assert line.endswith(f"not opened: the backend took longer than {LAUNCH_SECONDS:g} s to start")
    assert made.taken == 0
    made.pool.stop()
    assert made.clock.getDelayedCalls() == []


def test_a_take_cancelled_during_the_launch_holds_no_permit() -> None:
    made = Pooled(launcher=SlowLauncher())
    taking = made.taking()
    taking.deferred.cancel()
    assert taking.failed is CancelledError
    made.check()
    assert made.taken == 0
    assert made.clock.getDelayedCalls() == []


def test_stopping_cancels_a_launch() -> None:
    made = Pooled(launcher=SlowLauncher(), warm=1)
    taking = made.taking()
    made.clock.advance(WARM_SECONDS)
    assert made.taken == 2
    stopped: list[Any] = []
    made.pool.stop().addCallback(stopped.append)
    assert taking.failed is ShuttingDown
    assert stopped == [[]]
    assert made.taken == 0
    assert made.taking().failed is ShuttingDown
    assert made.clock.getDelayedCalls() == []


def test_a_change_is_pending_while_a_process_starts_or_ends() -> None:
    made = Pooled(launcher=SlowLauncher())
    pool, pending = made.pool, []
    pending.append(pool.has_pending_change())
    taking = made.taking()
    pending.append(pool.has_pending_change())
    made.launcher.finish()
    pending.append(pool.has_pending_change())
    taking[0].life.end("over")
    pending.append(pool.has_pending_change())
    close(taking[0])
    pending.append(pool.has_pending_change())
    assert pending == [False, True, False, True, False]


# Spare processes.


def test_a_spare_process_that_is_taken_is_replaced_soon() -> None:
    """Each time, even though the timer is set to replace old ones in an hour."""
    made = Pooled(limit=10, warm=1).warmed()
    for count in range(1, 6):
        assert len(made.backends) == count
        made.take()
        assert len(made.backends) == count
        made.clock.advance(WARM_SECONDS)
    assert len(made.backends) == 6


def test_spare_processes_are_started_one_by_one() -> None:
    made = Pooled(limit=10, warm=5)
    counts = []
    for _ in range(8):
        made.clock.advance(WARM_SECONDS)
        counts.append(len(made.backends))
    assert counts == [1, 2, 3, 4, 5, 5, 5, 5]


def test_only_one_spare_process_is_launched_at_a_time() -> None:
    made = Pooled(launcher=SlowLauncher(), limit=10, warm=3)
    made.clock.pump([WARM_SECONDS] * 20)
    assert len(made.backends) == 1
    made.pool.fail("something else")
    made.pool.backoff.succeeded()
    made.launcher.finish()
    made.clock.advance(WARM_SECONDS)
    assert len(made.backends) == 2
    made.pool.stop()


def test_spare_processes_respect_the_limits_and_start_when_a_permit_is_free() -> None:
    made = Pooled(limit=1, warm=1)
    session = made.take()
    made.clock.advance(WARM_SECONDS)
    assert len(made.backends) == 1
    end(session)
    made.clock.advance(WARM_SECONDS)
    assert len(made.backends) == 2


def test_a_permit_freed_by_another_server_is_used_for_a_spare_process() -> None:
    bridge_limiter = SessionLimiter(1)
    permit = bridge_limiter.acquire()
    assert permit is not None
    made = Pooled(bridge_limiter=bridge_limiter, warm=1)
    made.clock.advance(WARM_SECONDS)
    permit.release()
    made.clock.advance(STARVED_SECONDS)
    assert len(made.backends) == 1


def test_an_old_spare_process_is_replaced() -> None:
    made = Pooled(warm=1, max_process_age=50.0).warmed()
    made.clock.advance(49)
    assert made.backends[0].events == []
    made.clock.advance(1)
    assert made.backends[0].events == ["stop"]
    assert len(made.backends) == 2
    assert str(made.pool.backoff) == "ready"
    made.take()
    assert made.backends[1].events == []


def test_a_tiny_max_process_age_causes_no_storm_of_starts() -> None:
    made = Pooled(limit=1000, warm=1, max_process_age=0.001)
    for _ in range(1000):
        made.clock.advance(0.01)
        for backend in made.backends:
            if not backend.receiver.receiving:
                close(backend.receiver)
    assert len(made.backends) <= 10 / WARM_SECONDS + 1


def test_buffered_output_is_delivered_before_later_output() -> None:
    """In order, not from within `take`, and before output of the same turn."""
    made = Pooled(warm=1).warmed()
    [backend] = made.backends
    session = backend.receiver
    session.messages_received(NOTES[:1])
    session.messages_received(NOTES[1:3])
    assert made.take() is session
    stream = session.sink = RecordingSink()
    assert stream.lines == []
    assert backend.events[-1] == "pause"
    made.clock.advance(0)
    assert backend.events[-1] == "resume"
    session.messages_received(NOTES[3:])
    assert stream.lines == NOTES


def test_buffered_output_is_bounded() -> None:
    made = Pooled(warm=1).warmed()
    [backend] = made.backends
    line = b'"' + b"x" * (SPARE_OUTPUT_BYTES // 2) + b'"'
    backend.receiver.messages_received([line])
    assert backend.events == []
    backend.receiver.messages_received([line])
    assert backend.events == ["pause"]
    session = made.take()
    session.sink = RecordingSink()
    made.clock.advance(0)
    assert (session.sink.lines, backend.events[-1]) == ([line, line], "resume")


def test_buffered_output_is_dropped_if_the_session_has_ended() -> None:
    made = Pooled(warm=1).warmed()
    made.backends[0].receiver.messages_received(NOTES)
    session = made.take()
    stream = session.sink = RecordingSink()
    session.life.end("over")
    made.clock.advance(0)
    assert stream.lines == []
    assert made.backends[0].events[-1] == "stop"


@pytest.mark.parametrize("how", ["input_closed", "output_closed"])
def test_a_spare_process_that_dies_is_not_handed_out(how: str, log_lines: list[str]) -> None:
    made = Pooled(warm=1).warmed()
    [backend] = made.backends
    getattr(backend.receiver, how)("exit status 3")
    assert backend.events == ["stop"]
    assert str(made.pool.backoff) == "down after 1 failed start: exit status 3"
    assert made.taking().failed is ServerDown
    close(backend.receiver)
    assert made.taken == 0
    ended = "a warm process of 'default' ended: exit status 3;"
    assert len([line for line in log_lines if line.startswith(ended)]) == 1
    made.clock.advance(1)
    assert len(made.backends) == 2


def test_a_paused_spare_process_that_dies_returns_its_permit() -> None:
    """Its output stays in the pipe, so the end of the pipe is never seen."""
    reactor = FakeReactor()

    class Launcher(FakeLauncher):
        def launch(self, receiver: Any, label: str) -> Any:
            options = ServerSettings(command="cat")
            backend = StdioBackend(options, reactor, receiver, label, lambda pid: None)
            process = reactor.spawnProcess(backend, "cat", ["cat"])
            backend.begin(process.pid, FakeTree(prompt=True))
            return succeed(backend)

    made = Pooled(warm=1, clock=reactor, launcher=Launcher())
    reactor.advance(WARM_SECONDS)
    [process] = reactor.processes
    for _ in range(2):
        process.say(b'{"jsonrpc":"%s"}\n' % (b"x" * SPARE_OUTPUT_BYTES))
    assert process.paused
    session = next(iter(made.pool.unclosed))
    process.close_input()
    process.exit(1)
    reactor.pump([0.125] * 80)
    assert session.ended.called
    assert session not in made.pool.unclosed
    made.check()
    made.pool.stop()


def test_the_death_of_an_old_spare_process_is_no_failed_start() -> None:
    made = Pooled(warm=1).warmed()
    made.pool.backoff.failures = 3
    made.clock.advance(MAX_BACKOFF_SECONDS)
    made.backends[0].receiver.output_closed("nobody spoke to it")
    assert str(made.pool.backoff) == "ready"
    made.clock.advance(WARM_SECONDS)
    assert len(made.backends) == 2


@pytest.mark.parametrize("waited", [0.0, SETTLED_SECONDS])
def test_taking_a_settled_spare_process_resets_the_backoff(waited: float) -> None:
    made = Pooled(warm=1).warmed()
    made.pool.backoff.failures = 3
    made.clock.advance(waited)
    made.take()
    assert made.pool.backoff.failures == (0 if waited else 3)


@pytest.mark.parametrize("lives", [0.0, 0.5, 6.0, 59.0])
@pytest.mark.parametrize("warm", [1, 3])
def test_a_server_that_keeps_dying_causes_no_storm_of_starts(lives: float, warm: int) -> None:
    """
    Over an hour, a server that ends soon after each start is launched about once a minute;
    and once more, to see whether it answers, if it lives long enough.
    """
    made = Pooled(limit=10, warm=warm)

    def launch(receiver: Any, label: str) -> Any:
        backend = FakeBackend(receiver, label)
        backend.stopped = succeed(None)
        made.launcher.backends.append(backend)
        made.clock.callLater(lives, receiver.output_closed, "it crashed")
        return succeed(backend)

    made.launcher.launch = launch
    made.clock.pump([0.125] * 3600 * 8)
    assert 3600 / (MAX_BACKOFF_SECONDS + lives) <= len(made.backends)
    assert len(made.backends) <= (3600 / MAX_BACKOFF_SECONDS + 8) * (warm + 1)
    made.check()


@pytest.mark.parametrize("error", [CannotStart("not found"), RuntimeError("a defect")])
def test_a_launcher_that_fails_causes_no_storm_of_starts(
    error: Exception, logged_failures: list[Any]
) -> None:
    made = Pooled(warm=1)
    tries: list[float] = []

    def launch(*_: object) -> Any:
        tries.append(made.clock.seconds())
        raise error if isinstance(error, RuntimeError) else CannotStart("not found")

    made.launcher.launch = launch
    made.clock.pump([0.125] * 3600 * 8)
    assert 50 <= len(tries) <= 70
    assert made.taken == 0
    assert made.taking().failed is ServerDown


# Full servers, and those that are down.


def test_a_server_that_is_down_is_not_full() -> None:
    """`take` raises the error for 503, also where no permit is left."""
    made = Pooled(limit=1)
    session = made.take()
    assert made.pool.is_full()
    made.pool.fail("it crashes")
    assert not made.pool.is_full()
    assert made.taking().failed is ServerDown
    made.clock.advance(1)
    assert made.pool.is_full()
    assert made.taking().failed is TooManySessions
    end(session)


def test_a_spare_process_is_taken_while_the_server_is_down() -> None:
    made = Pooled(limit=1, warm=1).warmed()
    made.pool.fail("another one crashed")
    assert not made.pool.is_full()
    made.take()


# Capacity.


def two(bridge_limit: int, limit: int = 2, warm: int = 1) -> tuple[Pooled, Pooled]:
    """A pool without spare processes, and one of another server that has some."""
    shared, clock = SessionLimiter(bridge_limit), Clock()
    pools: list[ProcessPool] = []
    ours = Pooled(limit, shared, clock, pools=pools)
    theirs = Pooled(warm, shared, clock, pools=pools, warm=warm).warmed()
    return ours, theirs


def test_a_spare_process_of_another_server_gives_way() -> None:
    ours, theirs = two(bridge_limit=1)
    assert not ours.pool.is_full()
    taking = ours.taking()
    assert (taking, theirs.backends[0].events) == ([], ["stop"])
    close(theirs.backends[0].receiver)
    assert isinstance(taking[0], BackendSession)
    assert (ours.taken, theirs.taken) == (1, 0)
    end(taking[0])
    theirs.clock.advance(STARVED_SECONDS)
    assert len(theirs.backends) == 2


def test_another_servers_process_stays_where_the_own_limit_is_reached_too() -> None:
    """Both the server's own limit and the bridge's are reached."""
    ours, theirs = two(bridge_limit=2, limit=1)
    ours.take()
    assert ours.bridge_limiter.is_full()
    assert ours.pool.is_full()
    assert ours.taking().failed is TooManySessions
    assert theirs.backends[0].events == []


def test_another_servers_process_stays_where_only_the_own_limit_is_reached() -> None:
    ours, theirs = two(bridge_limit=5, limit=1)
    ours.take()
    assert ours.taking().failed is TooManySessions
    assert theirs.backends[0].events == []


def test_processes_that_are_being_launched_count_for_the_own_limit() -> None:
    ours, theirs = two(bridge_limit=5, limit=4)
    ours.launcher.launch = SlowLauncher().launch
    ours.taking()
    ours.launcher.launch = FakeLauncher().launch
    for _ in range(3):
        ours.take()
    assert ours.bridge_limiter.is_full()
    assert ours.taking().failed is TooManySessions
    assert theirs.backends[0].events == []


def test_servers_start_their_first_spare_processes_one_after_the_other() -> None:
    """`WARM_STAGGER_SECONDS` apart: fifty servers at once would hold up whoever is there."""
    clock, pools = Clock(), list[ProcessPool]()
    made = [Pooled(clock=clock, pools=pools, warm=warm) for warm in (1, 0, 1, 1)]
    clock.advance(WARM_SECONDS)
    started = [sum(len(each.backends) for each in made)]
    for _ in range(3):
        clock.advance(WARM_STAGGER_SECONDS)
        started.append(sum(len(each.backends) for each in made))
    assert started == [1, 2, 3, 3]


def test_a_spare_process_within_its_servers_part_stays() -> None:
    """Its permit would be kept for its server, so its end would help nobody."""
    whole, clock = BridgeLimiter(4), Clock()
    pools: list[ProcessPool] = []
    ours = Pooled(4, whole.part(4), clock, pools=pools)
    theirs = Pooled(1, whole.part(1), clock, pools=pools, warm=1).warmed()
    for _ in range(3):
        ours.take()
    assert ours.bridge_limiter.is_full()
    assert ours.pool.is_full()
    taking = ours.taking()
    assert taking.failed is TooManySessions
    assert theirs.backends[0].events == []
    # Once their server is stopped, nothing is its own.
    theirs.pool.begin_stop()
    assert theirs.pool.exceeds_guarantee
    assert not ours.pool.is_full()


def test_a_refusal_names_its_limit() -> None:
    whole, clock = BridgeLimiter(4), Clock()
    pools: list[ProcessPool] = []
    ours = Pooled(4, whole.part(4), clock, pools=pools)
    theirs = Pooled(1, whole.part(2), clock, pools=pools)
    for _ in range(3):
        ours.take()
    kept = "the bridge's max_sessions is 4, of which 1 are kept for other servers"
    text = "too many concurrent MCP sessions: "
    assert str(ours.pool.too_many(None)) == text + kept
    theirs.take()
    assert str(theirs.pool.too_many(None)) == f"{text}the server's max_sessions is 1"
    assert str(ours.pool.too_many(None)) == f"{text}the bridge's max_sessions is 4"


def test_a_server_whose_program_is_missing_is_known_until_it_starts() -> None:
    made = Pooled()
    good = made.launcher.launch
    for error in (CannotStart("it is not there"), CannotStart("it is still not there")):
        made.launcher.launch = lambda *_, error=error: fail(error)
        assert made.taking().failed is BackendFailed
        made.clock.advance(5)
    assert made.pool.cannot_start == (0.0, "it is still not there")
    made.launcher.launch = lambda *_: fail(OutOfResources("no descriptors"))
    assert made.taking().failed is BackendFailed
    assert made.pool.cannot_start == (0.0, "it is still not there")
    made.launcher.launch = good
    made.take()
    assert made.pool.cannot_start is None


@pytest.mark.parametrize("how", ["cancel", "stop", "never"])
def test_the_wait_for_a_permit_ends(how: str) -> None:
    """It can be cancelled, ends when the bridge stops, and is bounded."""
    ours, theirs = two(bridge_limit=1)
    taking = ours.taking()
    if how == "cancel":
        taking.deferred.cancel()
        assert taking.failed is CancelledError
    elif how == "stop":
        ours.pool.stop()
        close(theirs.backends[0].receiver)
        assert taking.failed is ShuttingDown
    else:
        ours.clock.advance(3 + STOP_SLACK_SECONDS)
        assert taking.failed is TooManySessions
    close(theirs.backends[0].receiver)
    theirs.pool.stop()
    assert (ours.taken, theirs.taken, ours.bridge_limiter.taken) == (0, 0, 0)
    assert ours.clock.getDelayedCalls() == []


# Random sequences of all of it.

STEPS = st.one_of(
    st.tuples(
        st.sampled_from(
            ["take", "launched", "broken", "cancel", "end", "closed", "drain", "crash"]
        ),
        st.integers(0, 9),
    ),
    st.tuples(st.just("time"), st.sampled_from([0, 0.05, 0.1, 1, 5, 60, 3600])),
)


@settings(max_examples=examples(150))
@given(st.lists(STEPS, max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_the_limit_is_never_exceeded_and_no_permit_is_lost(
    steps: list[tuple[str, float]], limit: int, warm: int
) -> None:
    launcher = SlowLauncher()
    made = Pooled(limit, warm=warm, launcher=launcher, max_process_age=100.0)
    takings: list[Taking] = []
    had: set[BackendSession] = set()
    for step, number in steps:
        index = int(number)
        sessions = sorted(made.pool.unclosed, key=lambda each: each.ident)
        session = sessions[index % len(sessions)] if sessions else None
        if step == "take":
            takings.append(made.taking())
        elif step == "time":
            made.clock.advance(number)
        elif step == "cancel" and takings:
            takings[index % len(takings)].deferred.cancel()
        elif step in ("launched", "broken") and launcher.launching:
            launched, backend = launcher.launching.pop(index % len(launcher.launching))
            if not launched.called:
                launched.callback(backend) if step == "launched" else launched.errback(
                    CannotStart("no")
                )
        elif session is not None and step == "end":
            session.life.end("over")
        elif session is not None and step == "drain":
            session.input_closed("it takes no more")
        elif session is not None and step == "crash":
            session.output_closed("it crashed")
        elif session is not None and step == "closed" and not session.receiving:
            close(session)
        made.check()
        given_out = [
            each for taking in takings for each in taking if isinstance(each, BackendSession)
        ]
        assert len(given_out) == len(set(given_out))
        assert not set(given_out) & set(made.pool.spares)
        assert len(made.pool.spares) <= warm
        had |= set(given_out)
    stopped: list[Any] = []
    made.pool.stop().addCallback(stopped.append)
    made.check()
    for session in list(made.pool.unclosed):
        close(session)
    made.clock.advance(0)
    assert stopped
    assert all(taking for taking in takings)
    assert (made.taken, made.bridge_limiter.taken, made.pool.unclosed) == (0, 0, set())
    assert made.clock.getDelayedCalls() == []
    assert all(session.ended.called for session in had)
