"""
The processes of a server: kept ready, within the limits; a failing server does
not affect others.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.config.tuning import STILLBORN_STARTS
from tests.e2e.harness import Bridge, StreamableHttpClient, backend, serving, shell, wait_until
from tests.e2e.stateless import (
    PREFIX,
    CallOutcome,
    KeepAliveConnection,
    ProcessCounter,
    ToolCaller,
    in_parallel,
    repeating_in_background,
    subscribe,
)
from tests.real.processes import alive

#: How long the failing servers run beside the good ones.
SECONDS = 5.0
WARM = 3
QUICK = {"stop_grace": 0.2, "kill_grace": 0.2}

pytestmark = pytest.mark.slow


def server(base: str, line: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Return a server of a configuration file."""
    command, *args = line
    return {"command": command, "args": args, "base_uri": base, **QUICK, **settings}


def starts(path: Path) -> int:
    """Return how many starts a server has noted."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def tries(seconds: float) -> int:
    """Return how often a server that cannot start may be tried: at 0, 1, 3, 7, … seconds."""
    return 1 + math.floor(math.log2(seconds + 1))


class RefusalLog:
    """Calls of a failing server, and the status of each answer."""

    def __init__(self, caller: ToolCaller) -> None:
        self.statuses: list[int] = []
        self._caller = caller

    @property
    def waits_more_often_than_it_fails(self) -> bool:
        """True if more calls were told to come later than were tried."""
        return self.statuses.count(503) > self.statuses.count(502)

    def call(self, _: int) -> None:
        """Make one call and record its status."""
        with self._caller.start_call("echo", "x") as response:
            assert response.status in (502, 503), response.body
            if response.status == 503:
                assert int(response.headers["retry-after"]) >= 1
            assert "message" in response.json["error"]
            self.statuses.append(response.status)
        time.sleep(0.05)


def test_failing_servers_do_not_affect_others(tmp_path: Path) -> None:
    """
    One cannot start, one cannot be kept ready, one is silent, one exits in every
    tenth call; meanwhile every call of the good ones succeeds.
    """
    files = {name: tmp_path / name for name in ("broken", "cold", "mute")}
    scripts = {name: f"echo started >> '{path}'; " for name, path in files.items()}
    silent = {"start_timeout": 0.3, "probe_timeout": 0.3}
    servers = {
        "older": server("/older", backend("tools", "legacy", 0)),
        "newer": server("/newer", backend("tools", "modern", 0)),
        "broken": server("/broken", shell(scripts["broken"] + "exit 3")),
        "cold": server("/cold", shell(scripts["cold"] + "exit 3"), warm=2),
        "mute": server("/mute", shell(scripts["mute"] + "exec sleep 600.$0"), **silent),
        "tenth": server("/tenth", backend("tools", "legacy", 10), reuse="identity"),
    }
    done: Counter[str] = Counter()
    with serving(config={"mcpServers": servers}) as bridge:
        began = time.monotonic()
        broken, mute = (RefusalLog(ToolCaller(bridge, base)) for base in ("/broken", "/mute"))
        clients = {base: bridge.open_streamable_http(base) for base in ("/older", "/newer")}

        def good(base: str) -> Callable[[int], None]:
            caller = ToolCaller(bridge, base)

            def work(number: int) -> None:
                assert caller.call("echo", f"{number}").tool_output["token"] == f"{number}"
                arguments = {"token": "of a session"}
                with clients[base].call("tools/call", name="echo", arguments=arguments) as answer:
                    assert "result" in answer.read_final_message()
                done[base] += 1

            return work

        works = [good("/older"), good("/newer"), broken.call, mute.call]
        with repeating_in_background(*works):
            lost, pids = crash(ToolCaller(bridge, "/tenth"), 100)
            time.sleep(max(0.0, began + SECONDS - time.monotonic()))
            # However slow the machine is, all of them go on.
            wait_until(lambda: len(done) == 2 and min(done.values()) > 20)
            wait_until(lambda: all(each.waits_more_often_than_it_fails for each in (broken, mute)))
        took = time.monotonic() - began + 1

        # Each process served nine calls; only the tenth of each is lost.
        assert max(pids.values()) == 9, (lost, pids)
        full = {pid for pid, served in pids.items() if served == 9}
        assert lost == len(full - {each.pid for each in bridge.marked_processes()})
        for refusals in (broken, mute):
            assert refusals.statuses[0] == 502
            # One more may have begun while the bridge checked the first failure.
            assert refusals.statuses.count(502) <= tries(took) + 1
        # One attempt starts three processes: for the probe, for the handshake, and to see
        # whether the server can start at all.
        assert starts(files["broken"]) <= 3 * (tries(took) + 1)
        assert starts(files["mute"]) <= 3 * (tries(took) + 1)
        assert 2 <= starts(files["cold"]) <= tries(took)


def crash(caller: ToolCaller, count: int) -> tuple[int, Counter[int]]:
    """Make calls, four at a time; return how many failed, and how many each process served."""

    def work(number: int) -> CallOutcome:
        return caller.call("echo", f"{number}")

    outcomes = [each for start in range(0, count, 4) for each in in_parallel(4, work)]
    assert {each.status for each in outcomes} <= {200, 502}, Counter(
        each.status for each in outcomes
    )
    served = Counter(each.tool_output["pid"] for each in outcomes if each.status == 200)
    return sum(each.status == 502 for each in outcomes), served


def test_modern_server_that_exits_is_restarted_for_the_next_call() -> None:
    """The next call does not have to wait."""
    with serving(command=backend("tools", "modern", 10)) as bridge:
        caller = ToolCaller(bridge)
        statuses = [caller.call("echo", "x").status for _ in range(40)]
        assert statuses == ([200] * 9 + [502]) * 4


def test_reconnecting_client_of_a_broken_server_is_backed_off(tmp_path: Path) -> None:
    """After STILLBORN_STARTS failures the bridge checks the server itself, then answers 503."""
    file = tmp_path / "starts"
    line = shell(f"echo started >> '{file}'; exit 3")
    with serving(config={"mcpServers": {"broken": server("/broken", line)}}) as bridge:
        client = bridge.new_client("/broken")

        def initialize() -> tuple[int, str, Any]:
            with client.call("initialize", protocolVersion=client.version) as response:
                retry = response.headers.get("retry-after", "")
                return response.status, retry, response.read_final_message()["error"]

        for _ in range(STILLBORN_STARTS):
            status, retry, error = initialize()
            assert (status, retry) == (200, ""), error
            assert "exit status 3" in error["message"]
        # Now the bridge itself checks whether the server can start.
        tries = 20
        for _ in range(tries):
            status, retry, error = initialize()
            assert "exit status 3" in error["message"]
            if status == 503:
                break
        # A second, and up to another one at random.
        assert (status, retry in ("1", "2")) == (503, True)
        assert STILLBORN_STARTS < starts(file) <= STILLBORN_STARTS + tries


def test_client_that_crashes_the_server_does_not_affect_others() -> None:
    """It comes again and again, with and without a session."""
    info = {"name": "bad", "version": "1"}
    with serving(command=backend("tools", "legacy", 0)) as bridge:
        caller = ToolCaller(bridge)

        def hostile(number: int) -> None:
            with bridge.new_client().call(
                "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info
            ) as response:
                assert response.status == 200
                assert "error" in response.read_final_message()
            meta = {f"{PREFIX}clientInfo": info}
            assert caller.call("echo", "bad", _meta=meta).status == 502
            done.append(number)

        def good(number: int) -> None:
            client = StreamableHttpClient(bridge.port)
            client.initialize()
            client.close()
            assert caller.call("echo", f"{number}").tool_output["token"] == f"{number}"
            served.append(number)

        done: list[int] = []
        served: list[int] = []
        with repeating_in_background(hostile, hostile, good):
            wait_until(lambda: len(done) > STILLBORN_STARTS + 2 and len(served) > 10)
        assert " is down after " not in bridge.log


def test_warm_processes_are_used_and_replaced_within_the_limits() -> None:
    command = backend("tools", "legacy", 0)
    limit = WARM + 1
    config = {"root": server("", command, warm=WARM, max_sessions=limit)}
    with serving(config={"mcpServers": config}) as bridge:
        spare = bridge.wait_for_backends(WARM)
        counter = ProcessCounter(bridge, "tools.py")
        with repeating_in_background(counter.sample):
            time.sleep(0.5)
            assert bridge.marked_processes() == spare
            clients = [bridge.open_streamable_http()]
            assert pid_of(clients[0]) in {each.pid for each in spare}
            # One in use, and as many ready as before.
            bridge.wait_for_backends(limit)
            clients += [bridge.open_streamable_http() for _ in range(WARM)]
            # The limit is in use; wait long enough for one more to start, if one were.
            time.sleep(0.5)
            in_use = bridge.marked_processes()
            assert {each.pid for each in in_use} == {pid_of(each) for each in clients}
            with bridge.new_client().call("initialize", protocolVersion="2025-11-25") as answer:
                assert answer.status == 429
                assert int(answer.headers["retry-after"]) >= 1
            with ToolCaller(bridge).start_call("echo", "x") as response:
                assert response.status == 429
            for client in clients:
                assert client.delete() == 200
            wait_until(lambda: not bridge.marked_processes() & in_use)
            bridge.wait_for_backends(WARM)
            # Stateless requests use them too.
            ready = {each.pid for each in bridge.marked_processes()}
            assert ToolCaller(bridge).call("echo", "x").tool_output["pid"] in ready
        assert counter.max_by_name["tools.py"] == counter.max_total == limit, counter.max_by_name
        assert counter.samples > 10


def pid_of(client: StreamableHttpClient) -> int:
    """Return the pid of a session's process."""
    arguments = {"token": "whoever"}
    with client.call("tools/call", name="echo", arguments=arguments) as answer:
        text = answer.read_final_message()["result"]["content"][0]["text"]
    pid: int = json.loads(text)["pid"]
    return pid


def test_spare_process_is_replaced_after_max_process_age() -> None:
    """There are never more of them meanwhile."""
    config = {
        "root": server("", backend("tools", "legacy", 0), warm=2, max_process_age=1, max_sessions=3)
    }
    with serving(config={"mcpServers": config}) as bridge:
        first = bridge.wait_for_backends(2)
        counter = ProcessCounter(bridge, "tools.py")
        with repeating_in_background(counter.sample):
            wait_until(lambda: not bridge.marked_processes() & first)
            second = bridge.wait_for_backends(2)
            wait_until(lambda: not bridge.marked_processes() & second)
        assert counter.max_total <= 3
        assert ToolCaller(bridge).call("echo", "x").status == 200


def test_killed_spare_process_is_replaced() -> None:
    """A client that comes meanwhile gets another one."""
    config = {"root": server("", backend("tools", "legacy", 0), warm=WARM)}
    with serving(config={"mcpServers": config}) as bridge:
        spare = bridge.wait_for_backends(WARM)
        killed = spare.pop()
        os.kill(killed.pid, signal.SIGKILL)
        with KeepAliveConnection(bridge.port, "") as client:
            assert client.call("echo", "x")["pid"] in {each.pid for each in spare}
            # One in use, and as many as before ready.
            bridge.wait_for_backends(WARM + 1)
        assert not alive(killed)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_bridge_leaves_no_process(how: int) -> None:
    """Neither spare ones nor those of sessions, running and suspended calls or subscriptions."""
    servers = {
        "older": server("/older", backend("tools", "legacy", 0), warm=2),
        "newer": server("/newer", backend("tools", "modern", 0), warm=2),
    }
    with serving(config={"mcpServers": servers}) as bridge:
        subscriptions = []
        for base in ("/older", "/newer"):
            caller = ToolCaller(bridge, base)
            bridge.open_sse(base)
            bridge.open_streamable_http(base)
            caller.start_elicitation("suspended")
            working = caller.start_call("wait", "working")
            subscriptions.append(subscribe(bridge.port, base))
            bridge.clients += [working, subscriptions[-1]]
        # Spare, two sessions, suspended, running, subscribed; modern: one for the last three.
        wait_until(lambda: processes(bridge) == {"legacy": 2 + 2 + 3, "modern": 2 + 2 + 1})
        everything = bridge.marked_processes()
        if how == signal.SIGTERM:
            bridge.stop()
            for each in subscriptions:
                assert each.read_message()["result"]["resultType"] == "complete"
        else:
            bridge.kill()
            wait_until(lambda: not bridge.marked_processes())
            wait_until(lambda: not any(map(alive, bridge.watchdogs)))
        assert not any(map(alive, everything))


def processes(bridge: Bridge) -> Counter[str]:
    """Count the running processes by era."""
    return Counter(
        each.command.split("tools.py ")[1].split()[0] for each in bridge.marked_processes()
    )
