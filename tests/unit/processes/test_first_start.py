"""A server whose first start is slow, and stateless clients that do not wait for it."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.errors import BackendFailed, ShuttingDown
from mcpbridge.stateless.client_connection import ClientConnection
from tests.fakes import Call, Legacy, Modern, ScriptedBackend, World

#: How long it takes to install, and after which a client gives up.
INSTALL = 6
PATIENCE = 2
#: How often one comes.
TRIES = 20

kinds = pytest.mark.parametrize("kind", [Legacy, Modern])


def installing(kind: type[ScriptedBackend], seconds: float = INSTALL) -> type[ScriptedBackend]:
    """A server whose processes answer nothing until one of them has run for `INSTALL`."""

    class Installing(kind):  # type: ignore[misc,valid-type]
        #: How many have begun, and when that was done; one that is ended meanwhile leaves nothing.
        installs = 0
        installed = False

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.ready = type(self).installed
            self.early: list[dict[str, Any]] = []
            if not self.ready:
                type(self).installs += 1
                self.clock.callLater(seconds, self.done)

        def done(self) -> None:
            if not self.ended:
                self.ready = type(self).installed = True
                for message in self.early:
                    super()._receive(message)

        def _receive(self, message: dict[str, Any]) -> None:
            super()._receive(message) if self.ready else self.early.append(message)

    return Installing


class Slow:
    """Such a server, behind the bridge."""

    def __init__(
        self, kind: type[ScriptedBackend], seconds: float = INSTALL, **options: Any
    ) -> None:
        self.kind: Any = installing(kind, seconds)
        self.world = World(self.kind, **{"limit": 10, "reuse": "connection", **options})

    def call(self, name: str = "one") -> Call:
        info = {"name": name, "version": "1"}
        return self.world.call("a", connection=ClientConnection(), info=info)

    def left(self) -> None:
        """Let the first client come, and leave."""
        leave(self.call())
        self.world.run(PATIENCE)
        assert self.kind.installs == 1

    def told(self) -> list[str]:
        """Return the client names that the processes were sent."""
        opened = [each.early + each.received for each in self.world.backends]
        return [lines[0]["params"]["clientInfo"]["name"] for lines in opened]


def leave(call: Call) -> None:
    assert call.exchange.connection is not None
    call.disconnect()
    call.exchange.connection.lose()


def answered(call: Call) -> bool:
    return bool(call.completions) and call.result["token"] == "a"


@kinds
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("limit", [1, 10])
@pytest.mark.parametrize("reuse", ["connection", "never", "identity"])
def test_impatient_clients_are_served_in_the_end(
    kind: type[ScriptedBackend], known: bool, limit: int, reuse: str
) -> None:
    """The start that the first one began goes on, and no other one is made beside it."""
    slow = Slow(kind, limit=limit, known=known, reuse=reuse)
    slow.left()
    for _ in range(TRIES):
        call = slow.call()
        slow.world.run(PATIENCE)
        if answered(call):
            break
        leave(call)
        slow.world.run(0.1)
    assert answered(call)
    assert slow.kind.installs == 1
    slow.world.run(ScriptedBackend.stop_seconds)
    assert slow.world.limiter.taken == len(slow.world.live) <= 1
    slow.world.end()


@kinds
def test_a_start_slower_than_the_probe_begins_twice(kind: type[ScriptedBackend]) -> None:
    """A process that is silent for `probe_timeout` is ended; the next one is left alone."""
    slow = Slow(kind, 15, known=False, probe_timeout=10)
    for _ in range(TRIES):
        call = slow.call()
        slow.world.run(PATIENCE)
        if answered(call):
            break
        leave(call)
        slow.world.run(0.1)
    assert answered(call)
    assert slow.kind.installs == 2
    slow.world.end()


@kinds
def test_many_returning_clients_start_one_process(kind: type[ScriptedBackend]) -> None:
    slow = Slow(kind)
    slow.left()
    calls = [slow.call(f"{number}") for number in range(8)]
    slow.world.run(INSTALL - PATIENCE)
    slow.world.run(1)
    assert all(map(answered, calls))
    assert slow.kind.installs == 1
    slow.world.end()


def test_the_process_serves_a_client_with_the_same_client_info() -> None:
    """Also where that client has waited for it."""
    slow = Slow(Legacy)
    slow.left()
    other, same = slow.call("other"), slow.call()
    slow.world.run(INSTALL - PATIENCE)
    slow.world.run(1)
    assert answered(other)
    assert answered(same)
    assert len(slow.world.backends) == 2
    assert slow.told() == ["one", "other"]
    slow.world.end()


@pytest.mark.parametrize("how", ["dies", "late"])
def test_waiting_requests_proceed_when_the_first_start_fails(how: str) -> None:
    slow = Slow(Legacy, 100, start_timeout=20.0)
    slow.left()
    call = slow.call()
    slow.world.run()
    assert len(slow.world.backends) == 1
    slow.kind.installed = True
    if how == "dies":
        slow.world.backends[0].die()
    else:
        slow.world.run(20 - PATIENCE)
    slow.world.run()
    slow.world.run(1)
    assert answered(call)
    slow.world.run(100)
    slow.world.end()


def test_the_wait_for_the_first_start_is_bounded_in_time() -> None:
    """A waiting request starts its own process then, which may take as long."""
    slow = Slow(Legacy, 100, start_timeout=20.0)
    slow.left()
    calls = [slow.call() for _ in range(3)]
    slow.world.run(20 - PATIENCE)
    assert slow.told().count("one") == 4
    slow.world.run(20)
    assert all(isinstance(each.refusal, BackendFailed) for each in calls)
    slow.world.stop()
    slow.world.run(100)
    slow.world.end()


def test_at_most_max_waiting_requests_wait_for_the_first_start() -> None:
    """The next request starts a process of its own."""
    slow = Slow(Legacy, max_waiting_requests=2)
    slow.left()
    for _ in range(3):
        slow.call()
    slow.world.run()
    assert slow.kind.installs == 2
    slow.world.run(INSTALL)
    slow.world.end()


def test_a_waiting_client_may_leave() -> None:
    slow = Slow(Legacy)
    slow.left()
    leave(slow.call())
    slow.world.run(INSTALL)
    assert len(slow.world.backends) == 1
    call = slow.call()
    slow.world.run()
    assert answered(call)
    slow.world.end()


def test_present_clients_do_not_wait_for_each_other() -> None:
    """The first one may have sent something that the server cannot take."""
    slow = Slow(Legacy)
    slow.call()
    slow.call()
    slow.world.run()
    assert slow.kind.installs == 2
    slow.world.run(INSTALL)
    slow.world.end()


def test_no_client_waits_for_a_server_that_has_worked() -> None:
    slow = Slow(Legacy)
    slow.world.pool.backoff.succeeded()
    slow.left()
    slow.call()
    slow.world.run()
    assert slow.kind.installs == 2
    slow.world.run(INSTALL)
    slow.world.end()


def test_stopping_ends_the_wait() -> None:
    slow = Slow(Legacy)
    slow.left()
    call = slow.call()
    slow.world.stop()
    slow.world.run(1)
    assert isinstance(call.refusal, ShuttingDown)
    assert len(slow.world.backends) == 1
    slow.world.run(INSTALL)
    slow.world.end()
