"""
Signals of the bridge as twistd runs it: handlers, terminals, log files; and
the report of sessions that SIGUSR1 asks for.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher, jsonFileLogObserver, textFileLogObserver
from twisted.python.logfile import LogFile
from twisted.scripts._twistd_unix import UnixAppLogger

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.config.tuning import REPORTED_LINES
from mcpbridge.session_report import session_lines
from mcpbridge.signals import HANGUP_SECONDS, SignalHandlers, reopen_log_files
from mcpbridge.tap import Options, makeService

OURS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """All of them as they are by default, and in the end as they were."""
    numbers = (*OURS, signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in OURS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Reactor(Clock):
    """A reactor that is told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.stops = 0

    def callFromThread(self, what: Callable[..., None], *arguments: Any) -> None:
        self.called.append((what, arguments))

    def turn(self) -> None:
        called, self.called = self.called, []
        for what, arguments in called:
            what(*arguments)

    def stop(self) -> None:
        self.stops += 1

    def sigInt(self, number: int, frame: Any) -> None:
        self.stop()

    sigTerm = sigInt


class Stopping:
    """A bridge that is told how to stop."""

    def __init__(self) -> None:
        self.left = ""
        self.told: list[str] = []
        self.drained: Deferred[None] = Deferred()

    def drain(self) -> Deferred[None]:
        self.told.append("drain")
        if not self.left:
            self.drained.callback(None)
        return self.drained

    def draining_for(self) -> str:
        return self.left

    def hurry(self) -> None:
        self.told.append("hurry")
        if self.left:
            self.left = ""
            self.drained.callback(None)

    def kill(self) -> None:
        self.told.append("kill")

    def longest_stop(self) -> float:
        return 8.0


class World:
    """Handlers, and what they have done."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.reactor = Reactor()
        self.terminal = terminal
        self.running = True
        self.reports = 0
        self.reloads = 0
        self.from_file = False
        self.bridge = Stopping()
        self.handlers = SignalHandlers(
            self.reactor,
            running=lambda: self.running,
            bridge=self.bridge,
            report=self.report,
            reload=self.reload,
            has_terminal=lambda: self.terminal,
        )

    def report(self) -> None:
        self.reports += 1

    def reload(self) -> bool:
        self.reloads += 1
        return self.from_file

    def raise_signal(self, number: int) -> None:
        """Nothing happens in the handler itself."""
        stops, reports = self.reactor.stops, self.reports
        signal.raise_signal(number)
        assert (self.reactor.stops, self.reports) == (stops, reports)
        self.reactor.turn()


@pytest.fixture
def world() -> World:
    world = World()
    world.handlers.install()
    return world


def test_signals_that_do_not_stop(world: World, log_lines: list[str]) -> None:
    world.raise_signal(signal.SIGUSR1)
    assert world.reports == 1
    world.raise_signal(signal.SIGUSR2)
    assert "SIGUSR2 does nothing" in log_lines[-1]
    world.raise_signal(signal.SIGHUP)
    assert log_lines[-1].startswith("SIGHUP: there is no log file to reopen")
    assert world.reactor.stops == 0
    assert world.reactor.getDelayedCalls() == []


def test_quit_stops_once(world: World, log_lines: list[str]) -> None:
    world.raise_signal(signal.SIGQUIT)
    assert world.reactor.stops == 1
    assert log_lines[-1] == "SIGQUIT: received, shutting down"
    world.raise_signal(signal.SIGQUIT)
    assert world.reactor.stops == 1
    assert log_lines[-1] == (
        "SIGQUIT: already stopping, which may take up to 8 s; the next signal kills the processes"
    )


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


@pytest.mark.parametrize("numbers", [*itertools.product(STOP_SIGNALS, repeat=4)])
def test_each_signal_to_stop_is_quicker(
    world: World, log_lines: list[str], numbers: tuple[int, ...]
) -> None:
    """Whichever they are: finish, wait no longer, kill."""
    signal.signal(signal.SIGINT, world.reactor.sigInt)
    signal.signal(signal.SIGTERM, world.reactor.sigTerm)
    world.handlers.install_stop()
    names = [signal.Signals(number).name for number in numbers]
    world.bridge.left = "3 requests at 'a'"
    world.raise_signal(numbers[0])
    assert (world.bridge.told, world.reactor.stops) == (["drain"], 0)
    assert log_lines[-1] == (
        f"{names[0]}: received, shutting down; waiting for 3 requests at 'a', which the next"
        " signal gives up"
    )
    world.raise_signal(numbers[1])
    assert (world.bridge.told, world.reactor.stops) == (["drain", "hurry"], 1)
    assert log_lines[-1] == (
        f"{names[1]}: 3 requests at 'a' given up; sessions end within 8 s, and the next signal"
        " kills their processes"
    )
    world.raise_signal(numbers[2])
    assert (world.bridge.told[2:], world.reactor.stops) == (["kill"], 1)
    assert log_lines[2:] == [f"{names[2]}: killing the processes of all sessions"]
    world.raise_signal(numbers[3])
    assert (world.bridge.told[2:], world.reactor.stops) == (["kill"], 1)
    assert log_lines[3:] == [f"{names[3]}: the processes were killed already"]


def test_the_reactor_stops_when_all_requests_are_finished(world: World) -> None:
    world.bridge.left = "1 request at 'a'"
    world.raise_signal(signal.SIGQUIT)
    assert world.reactor.stops == 0
    world.bridge.drained.callback(None)
    assert world.reactor.stops == 1


def test_a_reactor_that_others_have_stopped_is_left_alone(world: World) -> None:
    world.bridge.left = "1 request at 'a'"
    world.raise_signal(signal.SIGQUIT)
    world.running = False
    world.bridge.drained.callback(None)
    assert world.reactor.stops == 0


def test_a_terminal_hangs_up_once(log_lines: list[str]) -> None:
    """The signal may come again, and nobody hurries with it."""
    world = World(terminal=True)
    world.bridge.left = "1 request at 'a'"
    world.handlers.install()
    world.terminal = False
    for _ in range(3):
        world.raise_signal(signal.SIGHUP)
    assert world.bridge.told == ["drain"]


def test_a_signal_while_the_service_stops(world: World, log_lines: list[str]) -> None:
    """The service stops already, whoever told it to."""
    world.running = False
    world.raise_signal(signal.SIGQUIT)
    assert world.reactor.stops == 0
    assert "already stopping" in log_lines[-1]


def test_a_lost_terminal_stops_the_bridge(log_lines: list[str]) -> None:
    world = World(terminal=True)
    world.handlers.install()
    world.terminal = False
    world.raise_signal(signal.SIGHUP)
    assert world.reactor.stops == 1
    assert log_lines[-1] == "SIGHUP: the terminal is gone, shutting down"


def test_a_terminal_that_is_lost_after_the_signal_stops_the_bridge(log_lines: list[str]) -> None:
    """The signal may come before the kernel has taken the terminal away."""
    world = World(terminal=True)
    world.handlers.install()
    world.raise_signal(signal.SIGHUP)
    assert log_lines == []
    world.terminal = False
    world.reactor.advance(HANGUP_SECONDS)
    assert world.reactor.stops == 1


def test_a_terminal_that_stays_does_not_stop_the_bridge() -> None:
    """`kill -HUP` from another one."""
    world = World(terminal=True)
    world.handlers.install()
    world.raise_signal(signal.SIGHUP)
    assert world.reloads == 0
    world.raise_signal(signal.SIGHUP)
    world.reactor.advance(HANGUP_SECONDS)
    assert (world.reactor.stops, world.reloads) == (0, 1)
    assert world.reactor.getDelayedCalls() == []


def test_settings_are_read_again(world: World, log_lines: list[str]) -> None:
    """But not while the bridge stops."""
    world.from_file = True
    world.raise_signal(signal.SIGHUP)
    assert world.reloads == 1
    assert log_lines == []
    world.raise_signal(signal.SIGQUIT)
    world.raise_signal(signal.SIGHUP)
    assert world.reloads == 1
    assert log_lines[-1] == "SIGHUP: the bridge is stopping, and does not read its settings again"


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda number, frame: None])
def test_handlers_of_others_are_not_replaced(other: Any) -> None:
    """`nohup`, a debugger."""
    for number in OURS:
        signal.signal(number, other)
    signal.signal(signal.SIGTERM, other)
    handlers = World().handlers
    handlers.install()
    handlers.install_stop()
    assert all(signal.getsignal(number) == other for number in (*OURS, signal.SIGTERM))
    handlers.restore()
    assert all(signal.getsignal(number) == other for number in OURS)


def test_handlers_are_restored_with_the_service(world: World) -> None:
    world.handlers.install()
    assert all(callable(signal.getsignal(number)) for number in OURS)
    world.handlers.restore()
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in OURS)
    world.handlers.restore()


def test_the_handler_of_twistd_for_rotation_is_replaced(world: World, tmp_path: Path) -> None:
    """With --logfile, twistd takes SIGUSR1 for itself before the service is made."""
    world.handlers.restore()
    logger: Any = UnixAppLogger({"logfile": str(tmp_path / "log"), "nodaemon": True})
    observer = logger._getLogObserver()
    rotating = signal.getsignal(signal.SIGUSR1)
    assert callable(rotating)
    world.handlers.install()
    world.raise_signal(signal.SIGUSR1)
    assert world.reports == 1
    world.handlers.restore()
    assert signal.getsignal(signal.SIGUSR1) is rotating
    observer._outFile.close()


# Log files.


def test_log_files_are_reopened(tmp_path: Path) -> None:
    """As logrotate wants it: what is logged then is in the new file."""
    text: Any = LogFile("text", str(tmp_path))
    events: Any = LogFile("events", str(tmp_path))
    other: Any = [].append
    publisher = LogPublisher(textFileLogObserver(text), jsonFileLogObserver(events), other)
    log = Logger(observer=publisher)
    log.info("before")
    os.rename(tmp_path / "text", tmp_path / "text.1")
    log.info("between")
    assert list(reopen_log_files(log, publisher)) == [str(tmp_path / "text"), events.path]
    log.info("after")
    old = (tmp_path / "text.1").read_text()
    assert "before" in old
    assert "between" in old
    new = (tmp_path / "text").read_text()
    assert "after" in new
    assert "between" not in new
    assert len((tmp_path / "events").read_text().split("\n")) == 4
    text.close()
    events.close()


def test_a_log_file_that_cannot_be_opened_is_kept(tmp_path: Path, log_lines: list[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file: Any = LogFile("text", str(folder))
    publisher = LogPublisher(textFileLogObserver(file))
    os.rename(folder, tmp_path / "moved")
    assert list(reopen_log_files(Logger(), publisher)) == []
    assert "cannot reopen" in log_lines[-1]
    Logger(observer=publisher).info("still here")
    assert "still here" in (tmp_path / "moved" / "text").read_text()
    file.close()


@pytest.mark.parametrize("publisher", [object(), LogPublisher()])
def test_no_log_file_to_reopen(publisher: Any) -> None:
    assert list(reopen_log_files(Logger(), publisher)) == []


# The service.


PARROT = ServerSettings(command="parrot", launcher="tests.thirdparty.ParrotLauncher")


@pytest_twisted.ensureDeferred
async def test_an_embedded_bridge_installs_no_handlers(running_reactor: Any) -> None:
    numbers = range(1, signal.NSIG)
    before = [signal.getsignal(number) for number in numbers]
    settings = BridgeSettings(servers=(PARROT,), listen=(), child_subreaper=False)
    bridge = Bridge(settings, running_reactor)
    bridge.startService()
    assert [signal.getsignal(number) for number in numbers] == before
    await bridge.stopService()


@pytest_twisted.ensureDeferred
async def test_handlers_are_installed_while_twistd_runs_the_bridge(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    server = {"command": "parrot", "launcher": "tests.thirdparty.ParrotLauncher"}
    bridge = {"listen": [], "child_subreaper": False, "admin_listen": ["none"]}
    config.write_text(json.dumps({"mcpServers": {"a": server}, "bridge": bridge}))
    options = Options()
    options.parseOptions(["--config", str(config)])
    service: Any = makeService(options)
    service.privilegedStartService()
    service.startService()
    assert all(callable(signal.getsignal(number)) for number in OURS)
    await service.stopService()
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in OURS)


@pytest.fixture
def parrots(running_reactor: Any) -> Iterator[Bridge]:
    settings = BridgeSettings(servers=(PARROT,), listen=(), child_subreaper=False)
    bridge = Bridge(settings, running_reactor)
    bridge.startService()
    yield bridge
    pytest_twisted.blockon(bridge.stopService())


class Sink:
    """A client that is not there."""

    has_reader = False

    def send(self, lines: list[bytes]) -> None: ...

    def only_open(self) -> Any: ...

    def stop_keepalive(self) -> None: ...

    def close(self) -> None: ...


@pytest_twisted.ensureDeferred
async def test_each_session_is_a_line(parrots: Bridge, log_lines: list[str]) -> None:
    [server] = parrots.servers
    parrots.log_sessions()
    assert log_lines == ["0 sessions and other processes:"]
    sse = await server.open_session(lambda session: Sink())
    mcp = await server.open_streamable()
    spare = await server.pool.take()
    spare.messages_in, spare.bytes_in = 3, 17
    mcp.leaving = True
    sse.receiving = False
    now = sse.clock.seconds() + 12.3
    lines = {line.split()[1]: line for line in session_lines(server, now)}
    assert lines[sse.label].startswith(
        f"session {sse.ident[:8]} of 'default': /sse, closing, 12.3 s old, pid unknown, in 0 mess"
    )
    assert ": /mcp, ending, " in lines[mcp.label]
    assert ": warm, open, " in lines[spare.label]
    assert "in 3 messages (17 B), out 0 (0 B), refused 0" in lines[spare.label]
    spare.announced = True
    [line] = [each for each in session_lines(server, now) if spare.label in each]
    assert ": requests of 2026-07-28, or idle, open" in line
    assert not any(each.ident in "".join(lines.values()) for each in (sse, mcp, spare))
    del log_lines[:]
    parrots.log_sessions()
    assert log_lines[0] == "3 sessions and other processes:"
    assert len(log_lines) == 4
    sse.receiving = True


@pytest_twisted.ensureDeferred
async def test_lines_are_made_as_they_are_written(parrots: Bridge) -> None:
    """Not all in one turn of the reactor, of the sessions that there were at the beginning."""
    [server] = parrots.servers
    session = await server.open_streamable()
    lines = session_lines(server, session.clock.seconds())
    await server.open_streamable()
    session.messages_in = 7
    assert ["in 7 messages" in line for line in lines] == [True]


def test_many_lines_are_written_over_several_turns(log_lines: list[str]) -> None:
    """`REPORTED_LINES`; a second request meanwhile adds nothing, and a stop ends it."""
    clock = Clock()
    bridge = Bridge(BridgeSettings(servers=(PARROT,), listen=()), clock)
    bridge._log_lines(iter([f"line {number}" for number in range(2 * REPORTED_LINES + 1)]))
    assert len(log_lines) == REPORTED_LINES
    bridge.log_sessions()
    assert len(log_lines) == REPORTED_LINES
    clock.advance(0)
    assert len(log_lines) == 2 * REPORTED_LINES + 1
    assert log_lines[-1] == f"line {2 * REPORTED_LINES}"
    assert clock.getDelayedCalls() == []
    bridge.log_sessions()
    assert log_lines[-1].startswith("0 sessions")
