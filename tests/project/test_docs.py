"""The documents say what the code does: tables, examples, links, configuration files."""

import contextlib
import http.client
import importlib
import importlib.util
import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from zope.interface.verify import verifyObject

from mcpbridge import BridgeSettings, ServerSettings
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.config.auth import read_auth
from mcpbridge.config.file import parse_config
from mcpbridge.errors import (
    AuthenticationUnavailable,
    EventsGone,
    InvalidToken,
    MessageRefused,
    Refused,
    SettingError,
    TooManySessions,
)
from mcpbridge.extensions import load
from mcpbridge.interfaces import (
    IAuthenticator,
    IBackend,
    IBackendLauncher,
    IEventLog,
    IEventStore,
    IMessageFilter,
    IPermit,
    ISessionLimiter,
    ISessionObserver,
)
from mcpbridge.processes.caller import Caller
from tests.real.bridge import LOOPBACK, serving
from tests.real.parts import ROOT, beside_python
from tests.real.processes import eventually

DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
DECISIONS = sorted((DOCS / "decisions").glob("0*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"])
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
#: How long anything may take; nothing is proven by it.
PATIENCE = 60
_FENCED = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return _FENCED.sub("", path.read_text(encoding="utf-8"))


def blocks(path: Path, kind: str) -> list[str]:
    """The blocks of code of one kind."""
    found = _FENCED.finditer(path.read_text(encoding="utf-8"))
    return [block["body"] for block in found if block["kind"] == kind]


def anchors(path: Path) -> set[str]:
    """The fragments that lead into a document, as forges make them of its headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


# Links.


@each_document
def test_links_between_documents_resolve(path: Path) -> None:
    for link in _LINK.finditer(prose(path)):
        target, _, fragment = link["target"].partition("#")
        if "://" in target:
            continue
        linked = (path.parent / target).resolve() if target else path
        assert linked.exists(), link[0]
        assert not fragment or fragment in anchors(linked), link[0]


def test_every_document_is_reached_from_the_readme() -> None:
    readme = prose(ROOT / "README.md")
    reached = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("*/README.md")]
    for path in set(reached) - {ROOT / "README.md"}:
        assert f"({path.relative_to(ROOT)})" in readme


# Decisions.


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_sections_and_is_in_the_index(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.name[:4]}: ")
    assert re.search(r"^Status: (accepted|replaced by \[)", text, re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
        "Alternatives considered",
    ]
    assert f"[{path.name[:4]}]({path.name})" in prose(path.parent / "README.md")


# The site.


def test_every_document_is_in_a_table_of_contents_of_the_site(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    conf = runpy.run_path(str(DOCS / "conf.py"))
    listed = {ROOT / f"{conf['root_doc']}.md"}
    for sections in conf["TOCTREES"].values():
        for entry in itertools.chain(*sections.values()):
            name = re.sub(r".*<(.*)>", r"\1", entry).lstrip("/")
            found = set(ROOT.glob(f"{name}.md"))
            assert found, f"docs/conf.py names {entry}, which is not there"
            listed |= found
    assert listed == set(DOCUMENTS)


# The tables of modules.

_MODULE = re.compile(r"`([a-z_]+(?:/[a-z_]+)?\.py)`")


def test_the_architecture_has_a_line_for_every_module_and_names_no_other() -> None:
    package = ROOT / "mcpbridge"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    described = set(_MODULE.findall(rows))
    assert described >= {name for name in modules if not name.endswith("/__init__.py")}
    assert set(_MODULE.findall(text)) <= modules


# Tables of settings.


@pytest.fixture
def settings_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_table", DOCS / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_settings_are_current(
    settings_table: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    status = settings_table.main(["--check"])
    assert (status, capsys.readouterr().out) == (0, "")


def test_the_tables_say_which_settings_may_be_null(settings_table: ModuleType) -> None:
    for kind in (ServerSettings, BridgeSettings):
        rows = settings_table.settings_table(kind)[2:]
        for field, row in zip(settings_table.settings_of(kind), rows, strict=True):
            says = "null" in row.split(" | ")[3]
            assert says == field.metadata["check"].accepts(None), row


def test_every_table_is_in_a_document(settings_table: ModuleType) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for name in settings_table.TABLES:
        assert text.count(f"<!-- settings: {name} -->\n| ") == 1


def test_an_outdated_table_is_noticed_and_written_anew(
    settings_table: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = tmp_path / "table.md"
    old = "before\n<!-- settings: bridge -->\n| old |\n<!-- settings: end -->\nafter\n"
    document.write_text(old, encoding="utf-8")
    monkeypatch.setattr(settings_table, "ROOT", tmp_path)
    monkeypatch.setattr(settings_table, "DOCUMENTS", ("table.md",))
    monkeypatch.setattr(settings_table, "SCHEMA", "schema.json")
    assert settings_table.main(["--check"]) == 1
    assert document.read_text(encoding="utf-8") == old
    assert settings_table.main([]) == 0
    new = document.read_text(encoding="utf-8")
    assert "| old |" not in new
    assert "`max_connections`" in new
    assert new.startswith("before\n<!--")
    assert new.endswith("-->\nafter\n")
    assert settings_table.main(["--check"]) == 0
    assert "out of date" in capsys.readouterr().out
    (tmp_path / "schema.json").write_text("{}")
    assert settings_table.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("schema.json: out of date")


# The table of answers.

#: What one answer is: status, JSON-RPC code, seconds of `Retry-After`.
Answer = tuple[int, int, int | None]
_ANSWER = re.compile(
    r"^\| (?P<statuses>\d{3}(?:, \d{3})*) \|(?P<when>.*)\|(?P<code>[^|]*)\|$", re.M
)
_RETRY_AFTER = re.compile(r"`Retry-After: (\d+)`")


def answers_told(document: str) -> set[Answer]:
    """The answers that the rows of a document's table say there are, without successes."""
    told: set[Answer] = set()
    for row in _ANSWER.finditer(document):
        code = re.search(r"-\d+", row["code"])
        if code is not None:
            seconds = _RETRY_AFTER.search(row["when"])
            after = None if seconds is None else int(seconds[1])
            told |= {(int(each), int(code[0]), after) for each in row["statuses"].split(", ")}
    return told


def answers_given(kind: type[Refused] = Refused) -> set[Answer]:
    """The answers that the classes of errors make; two of them have a body of another kind."""
    given: set[Answer] = set()
    for each in kind.__subclasses__():
        given |= answers_given(each)
        if each.__module__ == Refused.__module__ and not issubclass(each, TooManySessions):
            given.add((each.status, each.code, each.retry_after))
    return given


def test_the_table_of_answers_has_every_error_and_no_other() -> None:
    told = answers_told((DOCS / "operating.md").read_text(encoding="utf-8"))
    assert told == answers_given()


def test_a_row_of_the_table_of_answers_is_read() -> None:
    rows = "| 200 | | |\n| 404, 405 | not | -32000 |\n| 429 | `Retry-After: 5` | on x -1 |\n"
    assert answers_told(rows) == {(404, -32000, None), (405, -32000, None), (429, -1, 5)}


# The threat model.


def test_the_threat_model_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (DOCS / "security.md").read_text("utf-8")))
    assert named
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


# Blocks of JSON.


@each_document
def test_blocks_of_json_are_json(path: Path) -> None:
    for block in blocks(path, "json"):
        assert isinstance(json.loads(block), dict)


@pytest.mark.parametrize("name", ["configuration.md", "quickstart.md", "extending.md"])
def test_configuration_files_that_are_shown_are_valid(name: str) -> None:
    shown = blocks(DOCS / name, "json")
    assert shown
    for block in shown:
        assert parse_config(json.loads(block), "/").servers


def test_the_settings_of_authentication_that_are_shown_are_valid() -> None:
    shown = [json.loads(block) for block in blocks(DOCS / "authentication.md", "json")]
    files = [each for each in shown if {"bridge", "mcpServers"} <= each.keys()]
    assert len(files) >= 4
    for each in files:
        assert parse_config(each, "/").servers
    fragments = [each for each in shown if "oauth" in each]
    fragments += [each["bridge"]["auth"] for each in shown if {*each} == {"bridge"}]
    assert len(fragments) >= 7
    for each in fragments:
        assert read_auth(each).identifies


# Examples.

SETTINGS: dict[str, Any] = {"command": "unused", "max_sessions": 2}
#: The key whose digest is in the example's file of keys.
EXAMPLE_KEY = "an-example-and-no-secret"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    ("setting", "interface", "name", "options"),
    [
        ("launcher", IBackendLauncher, "inprocess_launcher.InProcessLauncher", {}),
        ("limiter", ISessionLimiter, "load_limiter.LoadLimiter", {}),
        ("observers", ISessionObserver, "session_ledger.SessionLedger", {"ledger": "x"}),
        ("filters", IMessageFilter, "tool_filter.ToolFilter", {"allowed_tools": []}),
        ("event_store", IEventStore, "file_event_store.FileEventStore", {"events": "."}),
        (
            "auth.authenticator",
            IAuthenticator,
            "key_authenticator.KeyAuthenticator",
            {"keys": str(EXAMPLES / "keys.txt")},
        ),
    ],
)
def test_examples_provide_their_interfaces(
    setting: str, interface: Any, name: str, options: dict[str, Any]
) -> None:
    made = load(setting, interface, name, ServerSettings(**SETTINGS, options=options))
    assert verifyObject(interface, made)


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("load_limiter.LoadLimiter", {"max_load": "high"}),
        ("session_ledger.SessionLedger", {}),
        ("tool_filter.ToolFilter", {"allowed_tools": "echo"}),
        ("file_event_store.FileEventStore", {}),
        ("file_event_store.FileEventStore", {"events": "/no/such/directory"}),
        ("key_authenticator.KeyAuthenticator", {}),
        ("key_authenticator.KeyAuthenticator", {"keys": "/no/such/file"}),
        ("key_authenticator.KeyAuthenticator", {"keys": __file__}),
    ],
)
def test_examples_refuse_wrong_options(name: str, options: dict[str, Any]) -> None:
    module, _, kind = name.partition(".")
    with pytest.raises(SettingError, match="options"):
        getattr(importlib.import_module(module), kind)(ServerSettings(**SETTINGS, options=options))


@pytest.mark.usefixtures("examples")
def test_the_limiter_of_the_examples() -> None:
    kind = importlib.import_module("load_limiter").LoadLimiter
    limiter = kind(ServerSettings(**SETTINGS, options={"max_load": 1e9}))
    one, two = limiter.acquire(), limiter.acquire()
    assert verifyObject(IPermit, one)
    assert limiter.acquire() is None
    two.release()
    two.release()
    assert limiter.taken == 1
    assert limiter.acquire() is not None
    busy = kind(ServerSettings(**SETTINGS, options={"max_load": -1}))
    assert busy.acquire() is None


@pytest.mark.usefixtures("examples")
def test_the_filter_of_the_examples(log_lines: list[str]) -> None:
    kind = importlib.import_module("tool_filter").ToolFilter
    judge = kind(ServerSettings(**SETTINGS, options={"allowed_tools": ["echo"]}))

    def call(tool: object) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}

    session = SimpleNamespace(caller=Caller("192.0.2.1", {"authorization": "s3cret"}))
    allowed = json.dumps(call("echo")).encode()
    assert json.loads(judge.from_client(None, allowed)) == call("echo")
    assert judge.from_backend(None, b"as it is") == b"as it is"
    twice = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping"}'
    assert json.loads(judge.from_client(None, twice))["method"] == "ping"
    assert b"tools/call" not in judge.from_client(None, twice)
    named = [{"name": "echo"}, {"name": "clock"}, {}, 1]
    told = {"jsonrpc": "2.0", "id": 1, "result": {"tools": named, "nextCursor": "x"}}
    one = {"jsonrpc": "2.0", "id": 1, "result": {"tools": named[:1], "nextCursor": "x"}}
    assert json.loads(judge.from_backend(None, json.dumps(told).encode())) == one
    assert json.loads(judge.from_backend(None, json.dumps([told, 1]).encode())) == [one, 1]
    for line in (b'{"method":"notifications/tools/list_changed"}', b'{"result":"tools"}'):
        assert judge.from_backend(None, line) is line
    refused: list[Any] = [call("clock"), [call("echo"), call("clock")], call(["echo"])]
    for message in [*refused, {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}]:
        with pytest.raises(MessageRefused):
            judge.from_client(session, json.dumps(message).encode())
    assert len(log_lines) == len(refused) + 1
    assert log_lines[0] == "<Caller address='192.0.2.1'> may not call 'clock'"


@pytest.mark.usefixtures("examples")
def test_the_observer_of_the_examples(tmp_path: Path) -> None:
    kind = importlib.import_module("session_ledger").SessionLedger
    path = tmp_path / "ledger"
    ledger = kind(ServerSettings(**SETTINGS, options={"ledger": str(path)}))
    caller = Caller("192.0.2.1", {"authorization": "s3cret"})
    counts = dict.fromkeys(("messages_in", "messages_out", "bytes_in", "bytes_out"), 0)
    for each in (caller, None):
        session = SimpleNamespace(server="x", label="1", caller=each, **counts)
        ledger.session_opened(session)
        ledger.session_closed(session, "the client left")
    assert ledger.open == 0
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["client"] for each in entries] == [
        {"address": "192.0.2.1", "name": None, "version": None},
        None,
    ]


@pytest.mark.usefixtures("examples")
def test_the_event_store_of_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("file_event_store")
    monkeypatch.setattr(module, "EVENTS_BYTES", 8)
    store = module.FileEventStore(ServerSettings(**SETTINGS, options={"events": str(tmp_path)}))
    log = store.open("id")
    assert verifyObject(IEventLog, log)
    with pytest.raises(EventsGone):
        log.after("1", 0)
    log.append("1", 1, b"one")
    log.append("0", 1, b"two")
    log.append("1", 2, b"")
    assert log.after("1", 0) == [(1, b"one"), (2, b"")]
    assert log.after("1", 2) == []
    assert list(tmp_path.iterdir()) == []
    log.append("1", 3, b"three")
    assert log.after("1", 2) == [(3, b"three")]
    assert log.after("1", 3) == []
    for stream, number in (("1", 1), ("0", 0), ("0", 1), ("2", 0)):
        with pytest.raises(EventsGone):
            log.after(stream, number)
    log.close()


@pytest.mark.usefixtures("examples")
def test_the_event_store_of_the_examples_on_a_full_disk() -> None:
    module = importlib.import_module("file_event_store")
    with Path("/dev/full").open("wb", buffering=0) as full:
        log = module.FileEventLog(full)
        log.append("1", 1, b"one")
        with pytest.raises(EventsGone):
            log.after("1", 0)


@pytest.mark.usefixtures("examples")
def test_the_authenticator_of_the_examples(tmp_path: Path, log_lines: list[str]) -> None:
    kind = importlib.import_module("key_authenticator").KeyAuthenticator
    keys = tmp_path / "keys.txt"
    keys.write_bytes((EXAMPLES / "keys.txt").read_bytes())
    authenticator = kind(ServerSettings(**SETTINGS, options={"keys": str(keys)}))

    def ask(*sent: bytes) -> Any:
        fields = [(b"X-Api-Key", each) for each in sent]
        return authenticator.authenticate(
            AuthenticationRequest("demo", b"POST", b"/demo/mcp", fields, "192.0.2.1")
        )

    good = EXAMPLE_KEY.encode("ascii")
    alice = ask(good)
    assert (alice.issuer, alice.subject, alice.scopes) == ("key", "alice", {"demo:use"})
    assert ask() is None
    for sent in ([b"another"], [b"\xff"], [b""], [good, good]):
        with pytest.raises(InvalidToken):
            ask(*sent)
    keys.write_text("")
    with pytest.raises(InvalidToken):
        ask(good)
    keys.unlink()
    with pytest.raises(AuthenticationUnavailable):
        ask(good)
    assert len(log_lines) == 1
    assert "an-example" not in log_lines[0]


@pytest.mark.usefixtures("examples")
def test_the_launcher_of_the_examples() -> None:
    class Receiver:
        lines: list[bytes] = []  # noqa: RUF012

        def messages_received(self, lines: list[bytes]) -> None:
            self.lines = [*self.lines, *lines]

    receiver = Receiver()
    kind = importlib.import_module("inprocess_launcher").InProcessLauncher
    launched: list[Any] = []
    kind(ServerSettings(**SETTINGS)).launch(receiver, "label").addCallback(launched.append)
    [backend] = launched
    assert verifyObject(IBackend, backend)
    backend.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    assert receiver.lines == []
    backend.pause()
    backend.send(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}')
    assert receiver.lines == []
    backend.resume()
    assert json.loads(receiver.lines[0])["result"]["tools"][0]["name"] == "greet"
    stopped: list[None] = []
    backend.stop().addCallback(stopped.append)
    assert stopped == [None]


# Whole sessions.


class Client:
    """A client of the standard library: one stream, and posts beside it."""

    def __init__(self, url: str, **headers: str) -> None:
        self.parts = urlsplit(url)
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection = self._connect()
        self._connection.request("GET", self.parts.path, headers=self._headers)
        self._stream = self._connection.getresponse()
        if self._stream.status != 200:
            refusal = self._stream.read()
            self.close()
            raise AssertionError(f"{self._stream.status} {refusal!r}")
        self.endpoint = self.event()["data"]

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            cast("str", self.parts.hostname), self.parts.port, timeout=PATIENCE
        )

    def event(self) -> dict[str, str]:
        """The next event."""
        fields: dict[str, str] = {}
        while line := self._stream.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        return fields

    def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool; its text, or that of an error, or the status and body of a refusal."""
        params = {"name": tool, "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        with contextlib.closing(self._connect()) as connection:
            connection.request("POST", self.endpoint, json.dumps(message), self._headers)
            answer = connection.getresponse()
            body = answer.read().decode()
        if answer.status != 202:
            return f"{answer.status} {body}"
        told: dict[str, Any] = {}
        while not {"result", "error"} & told.keys():
            told = json.loads(self.event()["data"])
        if "error" in told:
            return cast("str", told["error"]["message"])
        return cast("str", told["result"]["content"][0]["text"])

    def close(self) -> None:
        """Go away."""
        self._stream.close()
        self._connection.close()


@contextlib.contextmanager
def embedding(cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """The embedding example, run by twistd: its address, its process, its log."""
    twistd = [beside_python("twistd"), "--pidfile=", "-noy", str(EXAMPLES / "embed.py")]
    process = subprocess.Popen(
        twistd,
        cwd=cwd,
        env={**os.environ, "LISTEN": "tcp:0:interface=127.0.0.1", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(output))
    reader.start()
    try:

        def port() -> str:
            found = re.search(r"Site starting on (\d+)", "".join(lines))
            return found[1] if found else ""

        assert eventually(lambda: port() or process.poll() is not None, PATIENCE), lines
        assert port(), lines
        yield f"http://127.0.0.1:{port()}", process, lines
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        output.close()


@pytest.mark.slow
def test_the_embedding_example_serves_a_session(tmp_path: Path) -> None:
    with embedding(tmp_path) as (url, process, lines):
        parts = urlsplit(url)
        page = http.client.HTTPConnection(cast("str", parts.hostname), parts.port, timeout=PATIENCE)
        with contextlib.closing(page):
            page.request("GET", "/")
            assert page.getresponse().read() == b"hello from the application\n"
        with contextlib.closing(Client(f"{url}/tools/demo/sse")) as client:
            path, _, ident = client.endpoint.partition("?sessionId=")
            assert path == "/tools/demo/message"
            assert client.call("add", a=2, b=3) == "5"
        closed = "session .* of 'demo' closed .* the client went away"
        assert eventually(lambda: re.search(closed, "".join(lines)), PATIENCE), lines
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert ident not in "".join(lines)
    assert "127.0.0.1 GET / 200\n" in "".join(lines)


@pytest.mark.slow
def test_the_extended_example_serves_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=os.pathsep)
    # where `python` is one that has the demo server
    commands = tmp_path / "bin"
    commands.mkdir()
    python = commands / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    # and whatever else the machine is doing
    settings = json.loads((EXAMPLES / "extended.json").read_text(encoding="utf-8"))
    settings["mcpServers"]["demo"]["options"]["max_load"] = 1e9
    settings["mcpServers"]["private"]["options"]["keys"] = str(EXAMPLES / "keys.txt")
    file = tmp_path / "extended.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    with serving(tmp_path, "--config", str(file), *LOOPBACK, urls=3, marker="none") as bridge:
        urls = {urlsplit(url).path: url for url in bridge.urls}
        with contextlib.closing(Client(urls["/demo/sse"])) as client:
            assert client.call("echo", text="said") == "said"
            assert client.call("clock") == "the tool 'clock' may not be called here"
        with contextlib.closing(Client(urls["/greeter/sse"])) as client:
            assert client.call("greet", whom="you") == "hello, you"
        with pytest.raises(AssertionError, match="401"):
            Client(urls["/private/sse"])
        with contextlib.closing(Client(urls["/private/sse"], X_Api_Key=EXAMPLE_KEY)) as client:
            assert client.call("add", a=2, b=3) == "5"
        ledger = tmp_path / "sessions.jsonl"

        def whole() -> bool:
            return ledger.exists() and ledger.read_text(encoding="utf-8").endswith("\n")

        assert eventually(whole, PATIENCE), bridge.output
        entry = json.loads(ledger.read_text(encoding="utf-8"))
        assert entry["server"] == "demo"
        assert entry["messages"] == [1, 2], "the refusal is one to the client"
        bridge.stop()
