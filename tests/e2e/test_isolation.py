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

from tests.e2e.harness import TIMEOUT, Bridge, backend, serving, wait_until
from tests.e2e.stateless import (
    PREFIX,
    CallOutcome,
    KeepAliveConnection,
    ToolCaller,
    in_parallel,
    repeating_in_background,
    subscribe,
)
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


def disturbing(caller: ToolCaller) -> AbstractContextManager[None]:
    """Run other clients that call, leave in the middle, never answer, or subscribe."""

    def token() -> str:
        return f"other {uuid4()}"

    def leave(number: int) -> None:
        with caller.start_call("wait", token()) as response:
            time.sleep(0.03)
            (response.reset if number % 2 else response.close)()

    def abandon(number: int) -> None:
        caller.start_elicitation(token())
        time.sleep(0.4)

    def notify(number: int) -> None:
        mine = token()
        check_outcome(mine, caller.call("notify", mine, _meta=message_meta(mine)), logs=True)

    def unsubscribe(number: int) -> None:
        with subscribe(caller.port, caller.base):
            caller.call("touch", token())

    return repeating_in_background(leave, abandon, notify, unsubscribe)


def message_meta(token: str, *, logs: bool = True) -> dict[str, Any]:
    """Return the `_meta` of a call that asks for progress and log messages."""
    level = {f"{PREFIX}logLevel": "info"} if logs else {}
    return {"progressToken": f"p {token}", **level}


def check_outcome(token: str, outcome: CallOutcome, *, logs: bool) -> None:
    """Check that a call received all of its own messages and no other."""
    assert outcome.tool_output["token"] == token
    progress = outcome.params_of("progress")
    assert [each["progress"] for each in progress] == list(range(5)), outcome
    assert {each["message"] for each in progress} == {token}
    assert {each["progressToken"] for each in progress} == {f"p {token}"}
    assert [each["data"] for each in outcome.params_of("message")] == [token] * (
        5 if logs else 0
    ), outcome


def converse(caller: ToolCaller, callers: int) -> list[Any]:
    """Let several clients ask and answer at once; return their results."""
    asked, answered = Barrier(callers), Barrier(callers)

    def work(number: int) -> Any:
        mine = str(uuid4())
        asked.wait(TIMEOUT)
        question = caller.start_elicitation(mine)
        answered.wait(TIMEOUT)
        output = caller.answer_elicitation(mine, question, f"of {mine}").tool_output
        assert (output["token"], output["answer"]) == (mine, f"of {mine}")
        return output

    return in_parallel(callers, work)


@pytest.mark.parametrize("disturbed", [False, True], ids=["alone", "disturbed"])
@pytest.mark.parametrize("callers", [1, 2, 4, 16])
@pytest.mark.parametrize("base", ["/legacy", "/never"])
def test_each_client_gets_its_own_question_and_answer(
    bridge: Bridge, base: str, callers: int, disturbed: bool
) -> None:
    """No call shares its process with another one."""
    caller = ToolCaller(bridge, base)
    with disturbing(caller) if disturbed else nullcontext():
        outputs = [each for _ in range(ROUNDS) for each in converse(caller, callers)]
    assert len(outputs) == ROUNDS * callers
    assert {each["beside"] for each in outputs} == {0}
    if base == "/never":
        assert len({each["pid"] for each in outputs}) == len(outputs)


def test_more_clients_than_processes_are_all_served(bridge: Bridge) -> None:
    caller = ToolCaller(bridge, "/few")

    def work(number: int) -> Any:
        mine = str(uuid4())
        return caller.answer_elicitation(
            mine, caller.start_elicitation(mine), f"of {mine}"
        ).tool_output

    outputs = in_parallel(16, work)
    assert all(each["answer"] == f"of {each['token']}" for each in outputs)
    assert len({each["token"] for each in outputs}) == 16
    assert {each["beside"] for each in outputs} == {0}


def test_modern_server_serves_all_clients_on_one_process(bridge: Bridge) -> None:
    """Sixteen calls at once, each with its own question and answer."""
    caller = ToolCaller(bridge, "/shared")
    first = caller.call("echo", "first").tool_output
    outputs = [each for _ in range(ROUNDS) for each in converse(caller, 16)]
    assert {each["pid"] for each in outputs} == {first["pid"]}


@pytest.mark.parametrize("callers", [1, 4, 16])
def test_clients_of_a_modern_server_get_their_own_questions(bridge: Bridge, callers: int) -> None:
    """Also while others call, leave and subscribe."""
    caller = ToolCaller(bridge, "/modern")
    with disturbing(caller):
        for _ in range(ROUNDS):
            converse(caller, callers)


@pytest.mark.parametrize("callers", [1, 2, 4, 16])
@pytest.mark.parametrize("base", ["/legacy", "/never", "/modern"])
def test_progress_and_log_messages_reach_their_own_client(
    bridge: Bridge, base: str, callers: int
) -> None:
    """Progress has the client's token; log messages come only to clients that asked for them."""
    caller = ToolCaller(bridge, base)

    def work(number: int) -> None:
        mine, logs = str(uuid4()), number % 4 == 0
        outcome = caller.call("notify", mine, _meta=message_meta(mine, logs=logs))
        check_outcome(mine, outcome, logs=logs)

    with disturbing(caller):
        for _ in range(ROUNDS):
            in_parallel(callers, work)


@pytest.mark.parametrize("base", ["/legacy", "/never", "/modern"])
def test_late_messages_of_a_finished_call_reach_nobody(bridge: Bridge, base: str) -> None:
    """Only a concurrent worker may still deliver its log messages."""
    caller = ToolCaller(bridge, base)
    meta: dict[str, Any] = {"progressToken": 1}
    if base != "/modern":
        meta[f"{PREFIX}logLevel"] = "info"

    def work(number: int) -> None:
        for _ in range(5):
            mine = str(uuid4())
            assert caller.call("late", mine, _meta=meta).notifications == []
            outcome = caller.call("notify", mine, _meta=meta)
            assert [each["progress"] for each in outcome.params_of("progress")] == list(range(5))
            assert {each["message"] for each in outcome.params_of("progress")} == {mine}
            assert {each["data"] for each in outcome.params_of("message")} <= {mine}

    in_parallel(4, work)


@pytest.mark.parametrize("base", ["/legacy", "/never"])
def test_late_messages_never_reach_another_connection(bridge: Bridge, base: str) -> None:
    """The server sends a late question and a late log message during the next call."""
    caller = ToolCaller(bridge, base)
    meta = {f"{PREFIX}logLevel": "info"}

    def work(number: int) -> None:
        for _ in range(5):
            mine = str(uuid4())
            assert caller.call("ask_late", mine, _meta=meta).tool_output["token"] == mine
            outcome = caller.call("notify", mine, _meta=meta)
            assert outcome.tool_output["token"] == mine
            assert {each["data"] for each in outcome.params_of("message")} == {mine}

    in_parallel(4, work)


def test_late_question_reaches_another_call_of_the_same_identity(bridge: Bridge) -> None:
    """With reuse by identity it does arrive, so the test above can fail."""
    caller = ToolCaller(bridge, "/identity")
    caller.call("ask_late", "first")
    outcome = caller.call("wait", "second")
    [asked] = outcome.result["inputRequests"].values()
    assert asked["params"]["message"] == "first"


def test_connection_keeps_its_own_process(bridge: Bridge) -> None:
    """While it is open, its requests meet the same process, and no other client does."""
    with (
        KeepAliveConnection(bridge.port, "/legacy") as one,
        KeepAliveConnection(bridge.port, "/legacy") as two,
    ):
        first = [each.call("echo", "x")["pid"] for each in (one, two, one, two, one)]
        assert len(set(first)) == 2
        assert first[0] == first[2] == first[4]
        pids = set(first)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    with KeepAliveConnection(bridge.port, "/legacy") as three:
        assert three.call("echo", "x")["pid"] not in pids


def check_misused_state(caller: ToolCaller, use: Callable[[str, CallOutcome], CallOutcome]) -> None:
    """Check that a misused state is refused, and that the call it belongs to goes on."""
    mine, other = str(uuid4()), str(uuid4())
    question = caller.start_elicitation(mine)
    answer = use(other, question)
    assert (answer.status, answer.response["error"]["code"]) == (400, -32602), answer
    assert caller.answer_elicitation(mine, question, "still").tool_output["answer"] == "still"


def test_request_state_is_refused_for_another_call(bridge: Bridge) -> None:
    """It is also refused if altered; the call that it belongs to goes on."""
    caller = ToolCaller(bridge, "/legacy")
    check_misused_state(
        caller, lambda token, outcome: caller.answer_elicitation(token, outcome, "x")
    )

    def forge(token: str, outcome: CallOutcome) -> CallOutcome:
        state = outcome.result["requestState"]
        swapped = state[:-2] + ("A" if state[-2] != "A" else "B") + state[-1]
        forged = {**outcome.result, "requestState": swapped}
        mine = next(iter(forged["inputRequests"].values()))["params"]["message"]
        return caller.answer_elicitation(mine, CallOutcome(200, [], {"result": forged}), "x")

    check_misused_state(caller, forge)


def test_request_state_can_be_used_once(bridge: Bridge) -> None:
    """Of two clients that send the same state, one is refused."""
    caller = ToolCaller(bridge, "/legacy")
    for _ in range(ROUNDS):
        mine = str(uuid4())
        question = caller.start_elicitation(mine)
        outcomes = in_parallel(
            2,
            lambda number: caller.answer_elicitation(mine, question, f"n{number}"),  # noqa: B023
        )
        assert sorted(each.status for each in outcomes) == [200, 400], outcomes


def test_request_state_expires_after_input_timeout(bridge: Bridge) -> None:
    """Its process then serves another call."""
    caller = ToolCaller(bridge, "/legacy")
    mine = str(uuid4())
    question = caller.start_elicitation(mine)
    time.sleep(INPUT_SECONDS + 0.5)
    late = caller.answer_elicitation(mine, question, "late")
    assert (late.status, late.response["error"]["code"]) == (400, -32602), late
    assert caller.call("echo", mine).tool_output["token"] == mine


@pytest.mark.parametrize("base", ["/legacy", "/modern"])
def test_sixteen_sdk_clients_get_their_own_questions(bridge: Bridge, base: str) -> None:
    """The official Python SDK, sixteen clients in one process."""
    client = Client("client2", "asking.py").command()
    url = f"http://127.0.0.1:{bridge.port}{base}/mcp"
    with disturbing(ToolCaller(bridge, base)):
        done = subprocess.run(
            [*client, url, "16", str(ROUNDS)], capture_output=True, timeout=100, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert len(seen) == 16 * ROUNDS
    for each in seen:
        assert each["asked"] == [each["token"]], each
        assert (each["said"]["token"], each["said"]["answer"]) == (each["token"],) * 2
