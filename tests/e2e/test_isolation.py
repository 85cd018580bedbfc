"""
Concurrent stateless clients of one server: each receives only what is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.harness import PATIENCE, Bridge, backend, serving, until
from tests.e2e.stateless import PREFIX, Caller, KeptAlive, Told, again_and_again, listen, together
from tests.real.parts import Client

ROUNDS = 3
#: Longer than a client here needs to answer, even on a busy machine.
INPUT_SECONDS = 4.0
#: Processes for the disturbing clients, in addition to those of the clients under test.
DISTURBED = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    """Serve legacy servers with each kind of reuse and one with few processes, and modern ones."""
    roomy = {"max_sessions": 16 + DISTURBED, "input_timeout": INPUT_SECONDS, "stop_grace": 0.2}
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "/legacy": ("legacy", {}),
        "/never": ("legacy", {"reuse": "never"}),
        "/identity": ("legacy", {"reuse": "identity"}),
        "/few": ("legacy", {"max_sessions": 3}),
        "/modern": ("modern", {"concurrency": 16, "max_sessions": 8}),
        "/shared": ("modern", {"concurrency": 16, "max_sessions": 8}),
    }
    servers = {}
    for base, (era, more) in settings.items():
        command, *args = backend("tools", era, 0)
        own = {"command": command, "args": args, "base_uri": base}
        servers[base.strip("/")] = {**own, **roomy, **more}
    with serving(config={"mcpServers": servers}) as bridge:
        yield bridge


def disturbing(caller: Caller) -> AbstractContextManager[None]:
    """Run other clients that call, leave in the middle, never answer, or subscribe."""

    def token() -> str:
        return f"other {uuid4()}"

    def leave(number: int) -> None:
        with caller.begin("wait", token()) as response:
            time.sleep(0.03)
            (response.reset if number % 2 else response.close)()

    def abandon(number: int) -> None:
        caller.ask(token())
        time.sleep(0.4)

    def tell(number: int) -> None:
        mine = token()
        check_told(mine, caller.call("tell", mine, _meta=telling(mine)), logs=True)

    def drop(number: int) -> None:
        with listen(caller.port, caller.base):
            caller.call("touch", token())

    return again_and_again(leave, abandon, tell, drop)


def telling(token: str, *, logs: bool = True) -> dict[str, Any]:
    """Return the `_meta` of a call that asks for progress and log messages."""
    level = {f"{PREFIX}logLevel": "info"} if logs else {}
    return {"progressToken": f"p {token}", **level}


def check_told(token: str, told: Told, *, logs: bool) -> None:
    """Check that a call received all of its own messages and no other."""
    assert told.said["token"] == token
    progress = told.of("progress")
    assert [each["progress"] for each in progress] == list(range(5)), told
    assert {each["message"] for each in progress} == {token}
    assert {each["progressToken"] for each in progress} == {f"p {token}"}
    assert [each["data"] for each in told.of("message")] == [token] * (5 if logs else 0), told


def converse(caller: Caller, callers: int) -> list[Any]:
    """Let several clients ask and answer at once; return their results."""
    asked, answered = Barrier(callers), Barrier(callers)

    def work(number: int) -> Any:
        mine = str(uuid4())
        asked.wait(PATIENCE)
        question = caller.ask(mine)
        answered.wait(PATIENCE)
        said = caller.reply(mine, question, f"of {mine}").said
        assert (said["token"], said["answer"]) == (mine, f"of {mine}")
        return said

    return together(callers, work)


@pytest.mark.parametrize("disturbed", [False, True], ids=["alone", "disturbed"])
@pytest.mark.parametrize("callers", [1, 2, 4, 16])
@pytest.mark.parametrize("base", ["/legacy", "/never"])
def test_each_client_gets_its_own_question_and_answer(
    bridge: Bridge, base: str, callers: int, disturbed: bool
) -> None:
    """No call shares its process with another one."""
    caller = Caller(bridge, base)
    with disturbing(caller) if disturbed else nullcontext():
        said = [each for _ in range(ROUNDS) for each in converse(caller, callers)]
    assert len(said) == ROUNDS * callers
    assert {each["beside"] for each in said} == {0}
    if base == "/never":
        assert len({each["pid"] for each in said}) == len(said)


def test_more_clients_than_processes_are_all_served(bridge: Bridge) -> None:
    caller = Caller(bridge, "/few")

    def work(number: int) -> Any:
        mine = str(uuid4())
        return caller.reply(mine, caller.ask(mine), f"of {mine}").said

    said = together(16, work)
    assert all(each["answer"] == f"of {each['token']}" for each in said)
    assert len({each["token"] for each in said}) == 16
    assert {each["beside"] for each in said} == {0}


def test_modern_server_serves_all_clients_on_one_process(bridge: Bridge) -> None:
    """Sixteen calls at once, each with its own question and answer."""
    caller = Caller(bridge, "/shared")
    first = caller.call("echo", "first").said
    said = [each for _ in range(ROUNDS) for each in converse(caller, 16)]
    assert {each["pid"] for each in said} == {first["pid"]}


@pytest.mark.parametrize("callers", [1, 4, 16])
def test_clients_of_a_modern_server_get_their_own_questions(bridge: Bridge, callers: int) -> None:
    """Also while others call, leave and subscribe."""
    caller = Caller(bridge, "/modern")
    with disturbing(caller):
        for _ in range(ROUNDS):
            converse(caller, callers)


@pytest.mark.parametrize("callers", [1, 2, 4, 16])
@pytest.mark.parametrize("base", ["/legacy", "/never", "/modern"])
def test_progress_and_log_messages_reach_their_own_client(
    bridge: Bridge, base: str, callers: int
) -> None:
    """Progress has the client's token; log messages come only to clients that asked for them."""
    caller = Caller(bridge, base)

    def work(number: int) -> None:
        mine, logs = str(uuid4()), number % 4 == 0
        told = caller.call("tell", mine, _meta=telling(mine, logs=logs))
        check_told(mine, told, logs=logs)

    with disturbing(caller):
        for _ in range(ROUNDS):
            together(callers, work)


@pytest.mark.parametrize("base", ["/legacy", "/never", "/modern"])
def test_late_messages_of_a_finished_call_reach_nobody(bridge: Bridge, base: str) -> None:
    """Only a concurrent worker may still deliver its log messages."""
    caller = Caller(bridge, base)
    meta: dict[str, Any] = {"progressToken": 1}
    if base != "/modern":
        meta[f"{PREFIX}logLevel"] = "info"

    def work(number: int) -> None:
        for _ in range(5):
            mine = str(uuid4())
            assert caller.call("late", mine, _meta=meta).before == []
            told = caller.call("tell", mine, _meta=meta)
            assert [each["progress"] for each in told.of("progress")] == list(range(5))
            assert {each["message"] for each in told.of("progress")} == {mine}
            assert {each["data"] for each in told.of("message")} <= {mine}

    together(4, work)


@pytest.mark.parametrize("base", ["/legacy", "/never"])
def test_late_messages_never_reach_another_connection(bridge: Bridge, base: str) -> None:
    """The server sends a late question and a late log message during the next call."""
    caller = Caller(bridge, base)
    meta = {f"{PREFIX}logLevel": "info"}

    def work(number: int) -> None:
        for _ in range(5):
            mine = str(uuid4())
            assert caller.call("haunt", mine, _meta=meta).said["token"] == mine
            told = caller.call("tell", mine, _meta=meta)
            assert told.said["token"] == mine
            assert {each["data"] for each in told.of("message")} == {mine}

    together(4, work)


def test_late_question_reaches_another_call_of_the_same_identity(bridge: Bridge) -> None:
    """With reuse by identity it does arrive, so the test above can fail."""
    caller = Caller(bridge, "/identity")
    caller.call("haunt", "first")
    told = caller.call("wait", "second")
    [asked] = told.result["inputRequests"].values()
    assert asked["params"]["message"] == "first"


def test_connection_keeps_its_own_process(bridge: Bridge) -> None:
    """While it is open, its requests meet the same process, and no other client does."""
    with KeptAlive(bridge.port, "/legacy") as one, KeptAlive(bridge.port, "/legacy") as two:
        first = [each.call("echo", "x")["pid"] for each in (one, two, one, two, one)]
        assert len(set(first)) == 2
        assert first[0] == first[2] == first[4]
        pids = set(first)
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    with KeptAlive(bridge.port, "/legacy") as three:
        assert three.call("echo", "x")["pid"] not in pids


def state_of_another(caller: Caller, use: Callable[[str, Told], Told]) -> None:
    """Check that a misused state is refused, and that the call it belongs to goes on."""
    mine, other = str(uuid4()), str(uuid4())
    question = caller.ask(mine)
    answer = use(other, question)
    assert (answer.status, answer.answer["error"]["code"]) == (400, -32602), answer
    assert caller.reply(mine, question, "still").said["answer"] == "still"


def test_request_state_is_refused_for_another_call(bridge: Bridge) -> None:
    """It is also refused if altered; the call that it belongs to goes on."""
    caller = Caller(bridge, "/legacy")
    state_of_another(caller, lambda token, told: caller.reply(token, told, "x"))

    def forge(token: str, told: Told) -> Told:
        state = told.result["requestState"]
        swapped = state[:-2] + ("A" if state[-2] != "A" else "B") + state[-1]
        forged = {**told.result, "requestState": swapped}
        mine = next(iter(forged["inputRequests"].values()))["params"]["message"]
        return caller.reply(mine, Told(200, [], {"result": forged}), "x")

    state_of_another(caller, forge)


def test_request_state_can_be_used_once(bridge: Bridge) -> None:
    """Of two clients that send the same state, one is refused."""
    caller = Caller(bridge, "/legacy")
    for _ in range(ROUNDS):
        mine = str(uuid4())
        question = caller.ask(mine)
        told = together(2, lambda number: caller.reply(mine, question, f"n{number}"))  # noqa: B023
        assert sorted(each.status for each in told) == [200, 400], told


def test_request_state_expires_after_input_timeout(bridge: Bridge) -> None:
    """Its process then serves another call."""
    caller = Caller(bridge, "/legacy")
    mine = str(uuid4())
    question = caller.ask(mine)
    time.sleep(INPUT_SECONDS + 0.5)
    late = caller.reply(mine, question, "late")
    assert (late.status, late.answer["error"]["code"]) == (400, -32602), late
    assert caller.call("echo", mine).said["token"] == mine


@pytest.mark.parametrize("base", ["/legacy", "/modern"])
def test_sixteen_sdk_clients_get_their_own_questions(bridge: Bridge, base: str) -> None:
    """The official Python SDK, sixteen clients in one process."""
    client = Client("client2", "asking.py").command()
    url = f"http://127.0.0.1:{bridge.port}{base}/mcp"
    with disturbing(Caller(bridge, base)):
        done = subprocess.run(
            [*client, url, "16", str(ROUNDS)], capture_output=True, timeout=100, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert len(seen) == 16 * ROUNDS
    for each in seen:
        assert each["asked"] == [each["token"]], each
        assert (each["said"]["token"], each["said"]["answer"]) == (each["token"],) * 2
