"""The status page in a real browser, with an admin listener that says what the test wants."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.chromium import PATIENCE, Page, browsing
from tests.real.parts import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("status-page")]

EVIL = '<img src=x onerror="document.title=1">\u202e&amp;<script>alert(1)</script>'
NOW = 1_800_000_000.0
#: What the browser itself notes of a response that is an error, or of a lost connection.
EXPECTED = "Failed to load resource"


class Admin:
    """The scripted admin listener, in a process of its own."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.scripted_admin", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.origin = f"http://127.0.0.1:{self.port}"

    def say(self, **script: Any) -> None:
        """Change what the listener says; open pages get a new document at once."""
        self._ask("PUT", json.dumps(script))

    def requests(self) -> list[Any]:
        """Return all requests of the browser."""
        return json.loads(self._ask("GET"))

    def _ask(self, method: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, "/test", body)
            return connection.getresponse().read()
        finally:
            connection.close()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def admin() -> Iterator[Admin]:
    admin = Admin()
    yield admin
    admin.stop()


@pytest.fixture
def page(admin: Admin, tmp_path: Path) -> Iterator[Page]:
    """Yield a page of a browser; at the end, its console must be clean and its requests local."""
    with browsing(tmp_path) as page:
        # A page that is not in front draws nothing.
        page.send("Page.bringToFront")
        yield page
    assert [each for each in page.complaints if EXPECTED not in each] == []
    asked = [each for each in page.requests if not each.startswith("data:")]
    assert asked
    assert all(each.startswith(f"{admin.origin}/") for each in asked)
    for each in admin.requests() if admin._process.returncode is None else ():
        assert "cookie" not in each["headers"]


def server(name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    """Return a server of the status document."""
    return {
        "name": name,
        "path": f"/{name}",
        "state": state,
        "since": None,
        "why": "",
        "retry_in": None,
        "sessions": {"live": 1, "opened": 5, "limit": 100},
        "processes": dict.fromkeys(("session", "exclusive", "warm", "starting", "ending"), 0),
        "waiting": 0,
        "requests": 100,
        "errors": 3,
        "messages": {"in": 1, "out": 1, "bytes_in": 1, "bytes_out": 1},
        "latency": {"p50": 0.012, "p95": None},
        "closed": {},
        "exits": {"exit status 1": 2},
        "refusals": {"TooManySessions": 1},
        "failures": [],
        **more,
    }


def failure(when: float, what: str, **more: Any) -> dict[str, Any]:
    """Return a failure of a server."""
    return {"when": when, "what": what, "session": "", "exit": "", "stderr": [], **more}


def session(ident: str, **more: Any) -> dict[str, Any]:
    """Return a session of the status document."""
    return {
        "id": ident,
        "server": "files",
        "transport": "streamable-http",
        "identity": "alice",
        "client": "inspector 1.0",
        "opened": NOW - 60,
        "state": "open",
        "pid": 4321,
        "messages_in": 1,
        "messages_out": 2,
        "bytes_in": 100,
        "bytes_out": 2048,
        "refused": 0,
        "memory_bytes": 50 << 20,
        "processes": 2,
        **more,
    }


def document(*listed: Any, servers: Any = None, **more: Any) -> dict[str, Any]:
    """Return a status document with these sessions."""
    return {
        "version": "1.2",
        "pid": 99,
        "condition": "serving",
        "started": NOW - 3600,
        "now": NOW,
        "urls": ["http://127.0.0.1:8808/"],
        "memory_bytes": 60 << 20,
        "descriptors": 40,
        "loop_lag": 0.001,
        "sessions": {"live": len(listed), "limit": 1000},
        "connections": {"open": 3, "limit": 10000},
        "refusals": {},
        "servers": [server("files")] if servers is None else servers,
        "listed": list(listed),
        "not_listed": 0,
        **more,
    }


def shown(page: Page, admin: Admin) -> None:
    """Open the page and wait until it shows a status."""
    page.open(f"{admin.origin}/")
    page.wait_for("!document.querySelector('#content').hidden")


def rows(table: str, index: int = 0) -> str:
    """Return an expression for the texts of one cell of each visible row of a table."""
    return (
        f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => !row.hidden)"
        f".map(row => row.cells[{index}].firstChild.textContent)"
    )


def text(selector: str) -> str:
    """Return an expression for the text of an element as it is seen."""
    return f"document.querySelector({json.dumps(selector)}).innerText"


def click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def test_sessions_appear_change_and_go(admin: Admin, page: Page) -> None:
    admin.say(document=document())
    shown(page, admin)
    assert page.evaluate("document.querySelector('#sessions .box').hidden")
    assert "Connect a client" in page.evaluate(text("#sessions"))
    assert page.evaluate(text("#about")).startswith("Version 1.2 · process 99 · up 1 h")

    admin.say(document=document(session("1a2b3c4d"), now=NOW + 2))
    page.wait_for(f"{rows('sessions')}.length === 1")
    # What is out of view has no `innerText`.
    row = page.evaluate("document.querySelector('#sessions tbody tr').textContent")
    for each in (
        "1a2b3c4d",
        "files",
        "inspector 1.0",
        "alice",
        "streamable-http",
        "open",
        "1 min 2 s",
    ):
        assert each in row
    for each in ("2.0 KiB", "50 MiB", "2 processes", "pid 4321"):
        assert each in row

    # Numbers change within the same elements, and rates follow from two documents.
    page.evaluate("window.cell = document.querySelector('#sessions tbody tr').cells[7].firstChild")
    page.evaluate("window.word = cell.firstChild; getSelection().selectAllChildren(cell)")
    page.evaluate("document.querySelector('#sessions td.action button').focus()")
    changed = [server("files", requests=120, errors=5)]
    more = document(session("1a2b3c4d", messages_in=1234), servers=changed, now=NOW + 4)
    admin.say(document=more)
    page.wait_for("cell.textContent === '1,234' && cell.firstChild === word && cell.isConnected")
    assert page.evaluate("getSelection().toString()") == "1,234"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == (
        "End the session 1a2b3c4d"
    )
    assert page.evaluate(text(".figure .value")) == "5.0"
    assert page.evaluate(rows("servers", 5)) == ["5.0"]
    assert page.evaluate(rows("servers", 6)) == ["0.50"]
    assert "M" in page.evaluate("document.querySelector('.figure .line').getAttribute('d')")

    # The focus is not lost with the row.
    admin.say(document=document(now=NOW + 6))
    page.wait_for(f"{rows('sessions')}.length === 0")


def test_a_newcomer_sees_why_servers_fail(admin: Admin, page: Page) -> None:
    stderr = ["Traceback (most recent call last):", "KeyError: 'API_KEY'"]
    what = "the backend ended before it answered anything"
    old = failure(NOW - 100, "an older failure", stderr=["older"])
    new = failure(NOW - 7, what, exit="exit status 1", stderr=stderr, session="1a2b3c4d")
    failing = server(
        "search", "failing", since=NOW - 200, why="it ended", retry_in=30, failures=[new, old]
    )
    slow = server("slow", "starting", since=NOW - 40)
    crashed = server("files", failures=[failure(NOW - 50, "it crashed once")])
    admin.say(document=document(servers=[crashed, failing, slow, server("idle", "not started")]))
    shown(page, admin)
    assert page.evaluate("document.title") == "1 server failing - mcpbridge"
    names = "[...document.querySelectorAll('#{} h3')].map(each => each.textContent)"
    assert page.evaluate(names.format("problems")) == ["search", "slow"]
    assert page.evaluate(names.format("failures")) == ["files"]
    problem = page.evaluate(text("#problems article"))
    for each in ("It ended", "next try in", "exit status 1", "1a2b3c4d", "7 s ago", *stderr):
        assert each in problem
    assert "older\n" not in problem
    assert "No process has answered yet" in page.evaluate(text("#problems article + article"))
    assert page.evaluate(rows("servers", 1)) == ["ready", "not started", "failing", "starting"]

    # What the user has opened stays as it is when a newer failure comes, which is the first.
    click(page, "#problems details + details summary")
    assert "older" in page.evaluate(text("#problems article"))
    newest = failure(NOW + 1, what, exit="exit status 2")
    failing["failures"] = [newest, new, old]
    admin.say(document=document(servers=[failing], now=NOW + 2))
    page.wait_for("document.querySelectorAll('#problems details').length === 3")
    opened = "[...document.querySelectorAll('#problems details')].map(each => each.open)"
    assert page.evaluate(opened) == [False, True, True]
    assert page.evaluate("document.querySelector('#failures').hidden")

    # A server that works again is no problem.
    admin.say(document=document(servers=[{**failing, "state": "ready"}], now=NOW + 4))
    page.wait_for("document.querySelector('#problems').hidden")
    assert page.evaluate(names.format("failures")) == ["search"]
    assert page.evaluate("document.title") == "mcpbridge"


def test_a_session_is_ended_after_a_question(admin: Admin, page: Page) -> None:
    answers = {"1a2b3c4d": (403, {"error": "this needs a token with the role `control`"})}
    admin.say(document=document(session("1a2b3c4d"), session("99999999")), answers=answers)
    shown(page, admin)
    opened = "document.querySelector('#confirm').open"
    end = "button[aria-label='End the session 1a2b3c4d']"
    click(page, end)
    assert page.evaluate(opened)
    asked = page.evaluate(text("#confirm"))
    for each in ("1a2b3c4d", "files", "inspector 1.0", "alice", "4321"):
        assert each in asked
    assert page.evaluate("document.activeElement.id") == "cancel"
    click(page, "#cancel")
    assert not page.evaluate(opened)

    click(page, end)
    click(page, "#end")
    page.wait_for(f"{text('#confirm-error')}.includes('role `control`')")
    admin.say(answers={"1a2b3c4d": (200, {"ended": "1a2b3c4d"})})
    click(page, "#end")
    page.wait_for(f"!{opened}")
    assert "was ended" in page.evaluate("document.querySelector('#spoken').textContent")
    posts = [each for each in admin.requests() if each["method"] == "POST"]
    assert [each["uri"] for each in posts] == ["/sessions/1a2b3c4d/end"] * 2
    assert {each["headers"]["content-type"] for each in posts} == {"application/json"}

    admin.say(document=document(session("99999999", state="ending"), now=NOW + 2))
    page.wait_for(f"{rows('sessions')}.length === 1")
    assert page.evaluate("document.querySelector('#sessions td.action button').disabled")


def test_a_token_is_asked_for_and_stays_in_the_page(admin: Admin, page: Page) -> None:
    admin.say(document=document(session("1a2b3c4d")), token="right")
    page.open(f"{admin.origin}/")
    page.wait_for("!document.querySelector('#login').hidden")
    assert page.evaluate("document.activeElement.id") == "token"
    submit = "document.querySelector('#token').value = {!r};"
    submit += "document.querySelector('#login').requestSubmit()"
    page.evaluate(submit.format("two words"))
    page.wait_for(f"{text('#login-error')}.includes('without spaces')")
    page.evaluate(submit.format("wrong"))
    page.wait_for(f"{text('#login-error')}.includes('does not accept')")
    page.evaluate(submit.format("right"))
    page.wait_for(f"{rows('sessions')}.length === 1")
    assert page.evaluate("document.querySelector('#login').hidden")
    assert page.evaluate("sessionStorage.length + document.cookie.length") == 0

    # With the box ticked it is still there when the page is loaded again, and then forgotten.
    shown_form = "!document.querySelector('#login').hidden"
    page.open(f"{admin.origin}/")
    page.wait_for(shown_form)
    page.evaluate("document.querySelector('#keep').checked = true")
    page.evaluate(submit.format("right"))
    page.wait_for(f"{rows('sessions')}.length === 1")
    page.open(f"{admin.origin}/")
    page.wait_for(f"{rows('sessions')}.length === 1")
    click(page, "#forget")
    page.wait_for(shown_form)
    assert page.evaluate("sessionStorage.length") == 0
    assert page.evaluate("document.querySelector('#about').hidden")
    for each in admin.requests():
        assert "right" not in each["uri"]


def test_hostile_texts_are_shown_as_text(admin: Admin, page: Page) -> None:
    found = failure(NOW - 1, EVIL, session=EVIL, exit=EVIL, stderr=[EVIL, "x" * 100_000])
    hostile = server(
        EVIL,
        "failing",
        why=EVIL,
        failures=[found],
        exits={EVIL: 1, "__proto__": 2},
        refusals={"constructor": 3},
    )
    strange = session("1a2b3c4d", client=EVIL, identity=EVIL, server=EVIL, transport=EVIL)
    odd = session("../x?y#z", state="constructor")
    admin.say(document=document(strange, odd, servers=[hostile], urls=[EVIL], version=EVIL))
    shown(page, admin)
    assert page.evaluate(rows("sessions", 2)) == [EVIL, "inspector 1.0"]
    assert page.evaluate(text("#problems h3")) == EVIL
    assert EVIL in page.evaluate(text("#problems pre"))
    assert page.evaluate("document.querySelector('#problems pre').textContent.length") < 5000
    assert page.evaluate("document.querySelectorAll('img, iframe, script').length") == 1
    assert page.evaluate("document.title") == "1 server failing - mcpbridge"
    click(page, "button[aria-label='End the session ../x?y#z']")
    click(page, "#end")
    page.wait_for(f"{text('#confirm-error')}.includes('no such session')")
    uris = [each["uri"] for each in admin.requests() if each["method"] == "POST"]
    assert uris == ["/sessions/..%2Fx%3Fy%23z/end"]
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_a_lost_bridge_is_noticed_and_found_again(admin: Admin, page: Page) -> None:
    admin.say(document=document(session("1a2b3c4d"), condition="draining"))
    shown(page, admin)
    assert page.evaluate(text("#condition")) == "draining"
    assert "takes no new sessions" in page.evaluate(text("#notice"))
    admin.say(document=document(session("1a2b3c4d"), now=NOW + 2))
    page.wait_for(f"{text('#condition')} === 'serving'")
    assert page.evaluate("document.querySelector('#notice').hidden")

    # The stream is open, and nothing comes.
    page.wait_for(f"{text('#link')}.startsWith('Stale since')")
    assert page.evaluate("document.body.classList.contains('stale')")
    assert page.evaluate(rows("sessions")) == ["1a2b3c4d"]
    admin.say(document=document(session("1a2b3c4d"), now=NOW + 12))
    page.wait_for(f"{text('#link')} === 'Live'")

    admin.stop()
    page.wait_for(f"{text('#link')}.includes('does not answer. Trying again in')")
    assert page.evaluate("!document.querySelector('#try-now').hidden")
    other = Admin(admin.port)
    try:
        stopping = document(session("99999999"), started=NOW, pid=100, condition="stopping")
        other.say(document=stopping)
        click(page, "#try-now")
        page.wait_for(f"{text('#link')} === 'Live'")
        assert page.evaluate(rows("sessions")) == ["99999999"]
        assert "process 100" in page.evaluate(text("#about"))
    finally:
        other.stop()
    # Now it has gone as it said.
    page.wait_for(f"{text('#condition')} === 'stopped'")
    assert "The bridge has stopped" in page.evaluate(text("#notice"))


def test_rows_are_sorted_filtered_and_kept(admin: Admin, page: Page) -> None:
    def listed(*numbers: int) -> list[Any]:
        return [
            session(f"{n:08d}", opened=NOW - n, client=f"c{n % 3}", messages_in=n % 7)
            for n in numbers
        ]

    admin.say(document=document(*listed(*range(500, 0, -1)), not_listed=7))
    shown(page, admin)
    page.wait_for(f"{rows('sessions')}.length === 500")
    assert page.evaluate(f"{rows('sessions')}[0]") == "00000001"
    assert "500 sessions, 7 more" in page.evaluate(text("#sessions-count"))
    header = "document.querySelectorAll('#sessions th')[7]"
    page.evaluate(f"{header}.querySelector('button').click()")
    assert page.evaluate(f"{header}.getAttribute('aria-sort')") == "descending"
    assert page.evaluate(f"{rows('sessions', 7)}.slice(0, 2)") == ["6", "6"]
    page.evaluate(f"{header}.querySelector('button').click()")
    assert page.evaluate(f"{header}.getAttribute('aria-sort')") == "ascending"
    assert page.evaluate(f"{rows('sessions', 7)}.slice(0, 2)") == ["0", "0"]
    assert page.evaluate("document.querySelectorAll('#sessions [aria-sort]').length") == 1

    field = "document.querySelector('#filter')"
    page.evaluate(f"{field}.value = 'C1 0000000'; {field}.dispatchEvent(new Event('input'))")
    assert sorted(page.evaluate(rows("sessions"))) == ["00000001", "00000004", "00000007"]
    assert "3 shown" in page.evaluate(text("#sessions-count"))

    # Rows are the same elements, those of a used table stay where they are, and new ones pass
    # the filter, too.
    page.evaluate("window.row = document.querySelector('#sessions tbody tr:not([hidden])')")
    page.evaluate("row.querySelector('button').focus(); window.name = row.cells[0].innerText")
    more = [*listed(*range(8, 0, -1)), session("00000000", client="c1", messages_in=0)]
    admin.say(document=document(*more, now=NOW + 2))
    page.wait_for(f"{rows('sessions')}.length === 4")
    assert page.evaluate("row.isConnected && row.cells[0].innerText === name")
    assert page.evaluate("row.contains(document.activeElement)")
    assert page.evaluate(f"{rows('sessions')}.at(-1)") == "00000000"


def test_on_a_phone_nothing_is_cut_off(admin: Admin, page: Page) -> None:
    page.send(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=640,
        deviceScaleFactor=1,
        mobile=True,
    )
    long = "w" * 300
    failing = server(long, "failing", why=long, failures=[failure(NOW, long, stderr=[long])])
    admin.say(
        document=document(
            session("1a2b3c4d", client=long, identity=long, server=long),
            servers=[failing, server("files")],
            urls=[long],
            refusals={long: 1},
        )
    )
    shown(page, admin)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.querySelector('#sessions tr td')).display") == (
        "block"
    )
    click(page, "#sessions td.action button")
    assert page.evaluate("document.querySelector('dialog').getBoundingClientRect().right <= 360")
    click(page, "#cancel")
    admin.say(token="x")
    page.wait_for("!document.querySelector('#login').hidden")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_all_that_is_kept_is_bounded(admin: Admin, page: Page) -> None:
    admin.say(document=document())
    shown(page, admin)

    def run(path: str, body: str) -> Any:
        return page.evaluate(f"import('/page/{path}.js').then(m => {{ {body} }})")

    # Events, however they are cut; one that is too long ends the connection.
    stream = ': hello\r\nevent: status\rdata: {"a":\ndata: 1}\r\n\r\nevent: other\ndata: 2\n\n'
    stream += "event: status\ndata:3\nid: 4\nnothing\n\n\n"
    for size in (1, 2, 3, 7, 1000):
        pieces = json.dumps([stream[i : i + size] for i in range(0, len(stream), size)])
        feed = f"for (const each of {pieces}) parser.feed(each);"
        body = f"const got = []; const parser = new m.EventParser(x => got.push(x)); {feed}"
        assert run("stream", f"{body} return got") == ['{"a":\n1}', "3"]
    body = "const parser = new m.EventParser(() => 0); const line = 'data: ' + 'x'.repeat(1e6);"
    body += "try { for (let i = 0; i < 9; i++) parser.feed(line + '\\n'.repeat(i % 2)); }"
    body += "catch (error) { return [error.message, m.MAX_EVENT_CHARS]; }"
    assert run("stream", body) == ["the bridge sent an event that is too long", 8 << 20]

    # The points of charts, and the samples of rates.
    body = "const points = []; for (let i = 0; i < 2000; i++) m.addPoint(points, {at: i * STEP});"
    body += "return [points.length, points[0].at, points.at(-1).at]"
    assert run("history", body.replace("STEP", "0.5")) == [300, 850, 999.5]
    assert run("history", body.replace("STEP", "2")) == [151, 3698, 3998]
    body = "return m.runs([0, 2, 4, 40, 42].map(at => ({at, v: at === 2 ? null : at})), 'v')"
    assert run("history", f"{body}.map(run => run.map(point => point.at))") == [[0, 4], [40, 42]]
    body = "const rates = new m.Rates(); const add = (now, started, requests) => rates.add("
    body += "{now, started, servers: [{name: 'a', requests, errors: 0}]}); const found = [];"
    body += "for (const x of STEPS) { add(...x); found.push(rates.of('a')?.requests ?? null); }"
    body += "return found"
    steps = [[0, 0, 0], [2, 0, 20], [20, 0, 20], [22, 0, 38], [24, 1, 5], [26, 1, 7], [28, 1, 1]]
    found = run("history", body.replace("STEPS", json.dumps(steps)))
    assert found == [None, 10, 0, pytest.approx(0.9), None, 1, None]

    # Rows, characters, and what is shown of numbers.
    many = [session(f"{n:08d}") for n in range(1005)]
    admin.say(document=document(*many, now=NOW + 2))
    page.wait_for(f"{rows('sessions')}.length === 1000")
    assert run("texts", "return m.shortened('x'.repeat(9999)).length") == 2001
    for call, expected in {
        "duration(0.5)": "0 s",
        "duration(3600)": "1 h",
        "duration(90061)": "1 d 1 h",
        "bytes(1536)": "1.5 KiB",
        "bytes(null)": "\u2013",
        "latency(0.0004)": "< 1 ms",
        "latency(0.9996)": "1.0 s",
        "rate(0.001)": "< 0.01",
        "rate(1234.5)": "1,235",
        "count(undefined)": "\u2013",
        "breakdown({a: 1, b: 2, c: 0})": "b: 2\na: 1",
        "breakdown({a: 9, b: 8, c: 7, d: 6, e: 5, f: 4})": "a: 9\nb: 8\nc: 7\nd: 6\nothers: 9",
    }.items():
        assert run("texts", f"return m.{call}") == expected


def test_a_document_of_another_version_does_not_stop_the_page(admin: Admin, page: Page) -> None:
    admin.say(document=document())
    shown(page, admin)
    admin.say(document={"version": "9"})
    page.wait_for(f"{text('#notice')}.includes('reload it')")
    admin.say(document=document(session("1a2b3c4d"), version="1.3", now=NOW + 4))
    page.wait_for(f"{rows('sessions')}.length === 1")
    assert "version 1.3 now" in page.evaluate(text("#notice"))
