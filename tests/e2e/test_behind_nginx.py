"""
A bridge behind a real nginx, with the configurations of `docs/authentication.md`.

Both configurations are taken from that page; only names of files, ports, the digest of the
token and the server's command are others.  Clients are told apart by their addresses, which
are all of this machine: 127.0.0.2 and so on.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509

from tests.certificates import SERVER, Authority
from tests.e2e.callers import (
    ACCEPT,
    INITIALIZE,
    TOKENS,
    Answer,
    Wire,
    ask,
    authorization,
    digest,
    modern,
    modern_lines,
)
from tests.e2e.harness import TIMEOUT, Bridge, backend, request, serving, wait_until
from tests.real import nginx
from tests.real.parts import REAL, ROOT, built, command
from tests.real.processes import PROC, Process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("nginx"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8"),
]

PAGE = (ROOT / "docs" / "authentication.md").read_text(encoding="utf-8")
#: The name of the public URL.
HOST = "mcp.example.org"
#: The only address from which the second bridge believes an identity; nginx connects from it.
PROXY = "127.0.0.5"
USERS = ("alice", "bob")


def section(title: str) -> str:
    """Return a section of the page."""
    [found] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def block(title: str, kind: str) -> str:
    """Return the first block of code of a kind, in a section of the page."""
    found = re.search(rf"^```{kind}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def replaced(text: str, **others: str) -> str:
    """Return a text with one occurrence of each of these words replaced by another."""
    for name, other in others.items():
        was = WORDS[name]
        assert text.count(was) == 1, f"{was} is not once in: {text}"
        text = text.replace(was, other)
    return text


#: What the page has, and the test cannot have.
WORDS = {
    "listen": "listen 443 ssl",
    "certificate": "/etc/letsencrypt/live/mcp.example.org/fullchain.pem",
    "key": "/etc/letsencrypt/live/mcp.example.org/privkey.pem",
    "upstream": "http://127.0.0.1:8808",
    "bridge": "tcp:8808:",
    "public_url": "https://mcp.example.org",
    "sha256": "af3545047c9f947794832f3d4208d5a53e7c305dd45b2a9b96ae11c29c736db1",
    "addresses": "10.0.0.5",
}
NGINX = block("On the internet in ten lines", "nginx")
BRIDGE = block("On the internet in ten lines", "json")
PROXY_IDENTITY = block("An identity from a proxy", "json")
[IDENTITY_LINE] = re.findall(
    r"In nginx: `(.*?)`", section("An identity from a proxy").replace("\n", " ")
)


class Certificates(NamedTuple):
    """The certificate of nginx: files, and what its clients trust."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority()
    pair = authority.issue("nginx", names=[x509.DNSName(HOST)], usage=SERVER)
    trusted = folder / "authority.pem"
    trusted.write_bytes(authority.pem)
    return Certificates(trusted, *pair.write(folder))


class Public(Wire):
    """A client's connection to nginx, by TLS, that comes from an address."""

    def __init__(self, site: Site, address: str = "127.0.0.1") -> None:
        super().__init__(site.port, address)
        context = ssl.create_default_context(cafile=site.certificates.authority)
        self.socket = context.wrap_socket(self.socket, server_hostname=HOST)

    def send_request(
        self, method: str, target: str, lines: list[str], body: bytes | None = None
    ) -> None:
        """Send a request, with the public name unless a line has another one."""
        usual = [] if any(each.startswith("Host:") for each in lines) else [f"Host: {HOST}"]
        size = [] if body is None else [f"Content-Length: {len(body)}"]
        text = "".join(f"{line}\r\n" for line in [*usual, *lines, *size])
        self.send(f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode() + (body or b""))

    def post(self, target: str, body: bytes, *lines: str) -> None:
        """Send a message."""
        usual = [f"Accept: {ACCEPT}", "Content-Type: application/json"]
        self.send_request("POST", target, [*usual, *lines], body)


class Site(NamedTuple):
    """A bridge with nginx in front, on a port of this machine."""

    port: int
    bridge: Bridge
    certificates: Certificates

    @property
    def url(self) -> str:
        """The public URL of the bridge."""
        return f"https://{HOST}:{self.port}"

    def get(self, target: str, *lines: str, address: str = "127.0.0.1") -> Answer:
        """Send a GET on a connection of its own; return its response."""
        with Public(self, address) as wire:
            wire.send_request("GET", target, list(lines))
            return wire.answer()

    def send(self, method: str, target: str, *lines: str) -> Answer:
        """Send another request without a body."""
        with Public(self) as wire:
            wire.send_request(method, target, [f"Accept: {ACCEPT}", *lines])
            return wire.answer()

    def post(self, target: str, body: bytes, *lines: str, address: str = "127.0.0.1") -> Answer:
        """Post a message on a connection of its own; return the response."""
        with Public(self, address) as wire:
            wire.post(target, body, *lines)
            return wire.answer()


class Events:
    """The events of a stream that goes on."""

    def __init__(self, wire: Public) -> None:
        self._chunks = wire.read_chunks()
        self._read = b""

    def next(self) -> tuple[str, str]:
        """Return the name and the data of the next event."""
        while b"\n\n" not in self._read:
            self._read += next(self._chunks)
        event, _, self._read = self._read.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
        return fields["event"], fields["data"]

    def message(self) -> Any:
        """Return the next message that is no ping."""
        while True:
            name, data = self.next()
            assert name == "message"
            message = json.loads(data)
            if message.get("method") != "ping":
                return message


def demo(**settings: Any) -> dict[str, Any]:
    """Return the settings of the demo."""
    line = {"command": sys.executable, "args": ["-I", "-m", "mcpbridge.demo"]}
    return {**line, "stop_grace": 0.2, **settings}


def tools(**settings: Any) -> dict[str, Any]:
    """Return the settings of a legacy server whose results have the id of its process."""
    name, *args = backend("tools", "legacy", 0)
    return {"command": name, "args": args, "stop_grace": 0.2, **settings}


def records(bridge: Bridge) -> list[dict[str, Any]]:
    """Return what the audit log has."""
    path = bridge.folder / "audit"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_record(bridge: Bridge, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first record of the audit log for which this holds, once there is one."""
    wait_until(lambda: any(map(condition, records(bridge))))
    return next(filter(condition, records(bridge)))


@contextlib.contextmanager
def serving_with_audit(config: dict[str, Any]) -> Iterator[Bridge]:
    """Run a bridge whose audit log is in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        audit = Path(folder) / "audit"
        with serving("--audit-log", str(audit), config=config, listen=()) as bridge:
            (bridge.folder / "audit").symlink_to(audit)
            yield bridge


# TLS at nginx, and named tokens.


@pytest.fixture(scope="module")
def site(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """
    Run both as the page says, with more servers: one for OAuth whose issuer is not there,
    and one for everybody, one session for each address.
    """
    with contextlib.closing(nginx.listening()) as listening:
        port = listening.getsockname()[1]
        config = json.loads(
            replaced(
                BRIDGE,
                bridge="tcp:0:",
                public_url=f"https://{HOST}:{port}",
                sha256=digest("alice"),
            )
        )
        config["mcpServers"] = {
            "time": demo(),
            "files": demo(auth={"oauth": {"issuer": "http://127.0.0.1:9"}}),
            "limited": demo(auth=False, max_sessions_per_address=1),
            "connection": tools(),
            "anybody": tools(auth=False),
        }
        # The clients of the tests are on this machine, which has no limits by default.
        config["bridge"]["exempt_addresses"] = []
        config["bridge"]["auth"]["tokens"]["bob"] = {"sha256": digest("bob")}
        with serving_with_audit(config) as bridge:
            block_of_server = replaced(
                NGINX,
                listen=f"listen 127.0.0.1:{port} ssl",
                certificate=str(certificates.certificate),
                key=str(certificates.key),
                upstream="http://bridge",
            )
            # The page's nginx makes a connection for each request; one that keeps them is
            # what might mix up its clients.
            upstream = f"upstream bridge {{ server 127.0.0.1:{bridge.port}; keepalive 1; }}"
            folder = tmp_path_factory.mktemp("nginx") / "prefix"
            with nginx.running(folder, f"{upstream}\n{block_of_server}", [listening]):
                yield Site(port, bridge, certificates)


@pytest.mark.parametrize("environment", ["client1", "client2"])
def test_real_client_with_a_token(site: Site, environment: str) -> None:
    """Over both transports; its sessions end with it."""
    line = [built(REAL / environment / "bin" / "python"), "-m", "tests.clients.on_this_machine"]
    urls = [f"{site.url}/time/{each}" for each in ("mcp", "sse")]
    done = subprocess.run(
        [*line, "slow", json.dumps({"steps": 2, "seconds": 0.1}), *urls],
        env={
            "PYTHONPATH": str(ROOT),
            "SSL_CERT_FILE": str(site.certificates.authority),
            "MCP_TOKEN": TOKENS["alice"] or "",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{site.bridge.log}"
    seen = [json.loads(each) for each in done.stdout.splitlines()]
    assert len(seen) == len(urls)
    for each in seen:
        assert each["result"]["content"][0]["text"].startswith("2 steps")
        assert len(each["progress"]) == 2
    site.bridge.wait_until_empty()


def test_events_arrive_while_their_stream_is_open(site: Site) -> None:
    """And a client that goes ends its session, with its process."""
    with Public(site) as wire:
        wire.send_request("GET", "/time/sse", authorization("alice"))
        assert wire.answer().status == 200
        events = Events(wire)
        name, endpoint = events.next()
        assert name == "endpoint"
        for number in range(3):
            body = request("tools/call", number, name="echo", arguments={"text": "x" * 5000})
            assert site.post(endpoint, body, *authorization("alice")).status == 202
            assert events.message()["id"] == number
        site.bridge.wait_for_backends(1)
    site.bridge.wait_until_empty()


def test_http2_stream(site: Site) -> None:
    """The page turns HTTP/2 on: a stream is not buffered there either."""
    line = [
        *(command("curl"), "--http2", "--silent", "--no-buffer", "--include"),
        *("--cacert", str(site.certificates.authority)),
        *("--connect-to", f"{HOST}:{site.port}:127.0.0.1:{site.port}"),
        *("--header", "@-", f"{site.url}/time/sse"),
    ]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as curl:
        assert curl.stdin is not None
        assert curl.stdout is not None
        curl.stdin.write("".join(authorization("alice")).encode())
        curl.stdin.close()
        try:
            assert curl.stdout.readline().startswith(b"HTTP/2 200")
            while (read := curl.stdout.readline()) != b"event: endpoint\n":
                assert read
            site.bridge.wait_for_backends(1)
        finally:
            curl.kill()
    site.bridge.wait_until_empty()


def test_client_that_leaves_a_request_ends_its_process(site: Site) -> None:
    with Public(site) as wire:
        body = modern("tools/call", name="wait", arguments={"token": "t"})
        lines = [*modern_lines("tools/call", "wait"), *authorization("alice")]
        wire.post("/connection/mcp", body, *lines)
        # One that is only being started would be kept for another request.
        wait_until(lambda: any(map(runs_a_call, site.bridge.backend_processes())))
    site.bridge.wait_until_empty()


def runs_a_call(process: Process) -> bool:
    """Tell whether a `tools.py` runs a call, which has a thread of its own."""
    try:
        return len(list((PROC / str(process.pid) / "task").iterdir())) > 1
    except FileNotFoundError:
        return False


def test_refusals_name_the_public_url(site: Site) -> None:
    """Whatever the `Host` of the request that reaches the bridge."""
    for path in ("mcp", "sse"):
        at = f"/.well-known/oauth-protected-resource/files/{path}"
        lines = [f"Host: {HOST}:{site.bridge.port}"]
        direct = f"GET /files/{path} HTTP/1.1\r\n{lines[0]}\r\n\r\n".encode()
        for refused in (site.get(f"/files/{path}"), ask(site.bridge.port, direct)):
            assert refused.status == 401
            assert refused.challenge == f'Bearer resource_metadata="{site.url}{at}"'
        direct = f"GET {at} HTTP/1.1\r\n{lines[0]}\r\n\r\n".encode()
        for document in (site.get(at), ask(site.bridge.port, direct)):
            assert document.status == 200
            assert document.json["resource"] == f"{site.url}/files/{path}"
            assert str(site.bridge.port).encode() not in document.body


@pytest.mark.parametrize("caller", ["nobody", "wrong"])
@pytest.mark.parametrize("target", ["/time/mcp", "/time/sse", "/time/message?sessionId=x"])
def test_others_are_refused(site: Site, target: str, caller: str) -> None:
    answer = site.post(target, INITIALIZE, *authorization(caller), address="127.0.0.20")
    assert answer.status == 401
    assert (answer.challenge or "").startswith("Bearer")


def test_only_the_public_name_is_served(site: Site) -> None:
    """nginx, whose only server takes all names, passes the name on."""
    lines = [*authorization("alice"), "Host: evil.example.org"]
    assert site.get("/time/sse", *lines).status == 403


FORGED = ("X-Forwarded-For: 203.0.113.5", "Forwarded: for=203.0.113.6", "X-Real-IP: 203.0.113.7")


def test_audit_log_has_the_address_of_the_client(site: Site) -> None:
    """And not one that the client claims to have."""
    lines = [*authorization("alice"), *FORGED]
    answer = site.post("/time/mcp", INITIALIZE, *lines, address="127.0.0.7")
    session = answer.headers["mcp-session-id"]
    record = wait_for_record(site.bridge, lambda one: one.get("session") == session[:8])
    assert (record["address"], record["identity"]) == ("127.0.0.7", "token#alice")
    lines = [f"Mcp-Session-Id: {session}", *authorization("alice")]
    assert site.send("DELETE", "/time/mcp", *lines).status == 200
    assert site.post("/time/mcp", INITIALIZE, *FORGED, address="127.0.0.8").status == 401
    wait_for_record(site.bridge, lambda one: one.get("address") == "127.0.0.8")
    assert not [one for one in records(site.bridge) if "203.0.113" in json.dumps(one)]


def test_limits_count_the_address_of_the_client(site: Site) -> None:
    with Public(site, "127.0.0.9") as first, Public(site, "127.0.0.10") as other:
        for wire in (first, other):
            wire.send_request("GET", "/limited/sse", [])
            assert wire.answer().status == 200
        for claimed in ([], list(FORGED)):
            assert site.get("/limited/sse", *claimed, address="127.0.0.9").status == 429
    site.bridge.wait_until_empty()


def test_failed_attempts_count_the_address_of_the_client(site: Site) -> None:
    """One that has made too many makes nobody else wait, nor those who have a token there."""
    lines = authorization("wrong")
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Public(site, "127.0.0.11")) for _ in range(20)]
        for number, wire in enumerate(wires):
            forged = [f"X-Forwarded-For: 203.0.113.{number}"]
            wire.post("/time/mcp", INITIALIZE, *lines, *forged)
        answers = [wire.answer() for wire in reversed(wires)]
        assert {each.status for each in answers} == {401}
        # Those that are not delayed, as too many are, say when to come back.
        assert any("retry-after" in each.headers for each in answers)
        assert site.post("/time/mcp", INITIALIZE, *lines, address="127.0.0.12").status == 401
        lines = [*authorization("alice"), *modern_lines("tools/list")]
        listed = site.post("/time/mcp", modern("tools/list"), *lines, address="127.0.0.11")
        assert listed.status == 200


def connections_to(port: int) -> set[tuple[str, str]]:
    """Return the ends of the established connections from this machine to a port."""
    found = set()
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if remote.endswith(f":{port:04X}") and state == "01":
            found.add((local, remote))
    return found


@pytest.mark.parametrize(
    ("base", "callers"),
    [
        ("/connection", ("alice", "bob")),
        ("/connection", ("alice", "alice")),
        ("/anybody", ("nobody", "nobody")),
    ],
    ids=["two identities", "one identity", "without auth"],
)
def test_clients_share_a_connection_and_no_process(
    site: Site, base: str, callers: tuple[str, str]
) -> None:
    """A legacy process serves one connection (`reuse`), but those of a proxy have many clients."""
    wait_until(lambda: len(connections_to(site.bridge.port)) <= 1)
    used, found = set(), []
    with Public(site, "127.0.0.13") as one, Public(site, "127.0.0.14") as other:
        for wire, caller in [(one, callers[0]), (other, callers[1])] * 3:
            body = modern("tools/call", name="echo", arguments={"token": caller})
            lines = [*modern_lines("tools/call", "echo"), *authorization(caller)]
            wire.post(f"{base}/mcp", body, *lines)
            answer = wire.answer()
            assert answer.status == 200
            found.append(json.loads(answer.json["result"]["content"][0]["text"])["pid"])
            used |= connections_to(site.bridge.port)
    assert len(used) == 1
    assert len(set(found)) == len(found)


# Passwords at nginx, which tells the bridge who has come.


class Identified(NamedTuple):
    """A bridge that believes nginx, by TCP or by a UNIX socket; one session of each user."""

    site: Site
    header: str


@pytest.fixture(scope="module")
def passwords(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Identified]]:
    """Run a bridge, and two nginx servers in front of it, as the page says."""
    folder = tmp_path_factory.mktemp("passwords")
    (folder / "users").write_text("".join(f"{each}:{{PLAIN}}of {each}\n" for each in USERS))
    believed = json.loads(replaced(PROXY_IDENTITY, addresses=PROXY))["bridge"]["auth"]
    config = json.loads(BRIDGE)
    config["mcpServers"] = {"time": demo()}
    with contextlib.ExitStack() as stack:
        # A path of a socket is short.
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bridge"
        tcp = "tcp:0:interface=127.0.0.1"
        config["bridge"] |= {"listen": [tcp, f"unix:{path}:mode=600"], "auth": believed}
        bridge = stack.enter_context(serving_with_audit(config))
        listening = {way: stack.enter_context(nginx.listening()) for way in ("tcp", "unix")}
        ports = {way: each.getsockname()[1] for way, each in listening.items()}
        upstreams = {"tcp": f"http://127.0.0.1:{bridge.port}", "unix": f"http://unix:{path}"}
        blocks = [
            replaced(
                NGINX,
                listen=f"listen 127.0.0.1:{ports[way]} ssl",
                certificate=str(certificates.certificate),
                key=str(certificates.key),
                upstream=upstreams[way],
            ).replace(
                "location / {",
                "location / {\n"
                f"auth_basic mcp; auth_basic_user_file {folder / 'users'}; {IDENTITY_LINE}"
                + (f"proxy_bind {PROXY};" if way == "tcp" else ""),
            )
            for way in listening
        ]
        sockets = list(listening.values())
        with nginx.running(folder / "prefix", "\n".join(blocks), sockets):
            yield {
                way: Identified(Site(port, bridge, certificates), believed["proxy"]["header"])
                for way, port in ports.items()
            }


@pytest.fixture(params=["tcp", "unix"])
def identified(request: pytest.FixtureRequest, passwords: Mapping[str, Identified]) -> Identified:
    return passwords[request.param]


def basic(user: str) -> str:
    """Return the header line with the password of a user."""
    return f"Authorization: Basic {base64.b64encode(f'{user}:of {user}'.encode()).decode()}"


def initialize(site: Site, *lines: str) -> str:
    """Open a session; return its id."""
    answer = site.post("/time/mcp", INITIALIZE, *lines)
    assert answer.status == 200, answer
    return answer.headers["mcp-session-id"]


def test_users_of_nginx_are_identities(identified: Identified) -> None:
    """Nobody finds the session of another."""
    site = identified.site
    sessions = {each: f"Mcp-Session-Id: {initialize(site, basic(each))}" for each in USERS}
    for user in USERS:
        for owner, session in sessions.items():
            answer = site.post("/time/mcp", request("ping", 2), session, basic(user))
            assert answer.status == (200 if user == owner else 404)
    alice, bob = USERS
    assert site.send("GET", "/time/mcp", sessions[alice], basic(bob)).status == 404
    assert site.send("DELETE", "/time/mcp", sessions[alice], basic(bob)).status == 404
    for user in USERS:
        assert site.send("DELETE", "/time/mcp", sessions[user], basic(user)).status == 200
    site.bridge.wait_until_empty()


def test_sse_session_of_another_user(identified: Identified) -> None:
    site = identified.site
    with Public(site) as wire:
        wire.send_request("GET", "/time/sse", [basic("alice")])
        assert wire.answer().status == 200
        events = Events(wire)
        _, endpoint = events.next()
        assert site.post(endpoint, request("ping", 7), basic("bob")).status == 404
        assert site.post(endpoint, request("ping", 8), basic("alice")).status == 202
        assert events.message()["id"] == 8
    site.bridge.wait_until_empty()


@pytest.mark.parametrize("spelling", ["{0}", "{1}", "{2}"], ids=["same", "lower", "underscores"])
def test_nginx_overwrites_the_header_of_a_client(identified: Identified, spelling: str) -> None:
    site, name = identified
    line = spelling.format(name, name.lower(), name.replace("-", "_")) + ": bob"
    session = initialize(site, basic("alice"), line, line)
    record = wait_for_record(site.bridge, lambda one: one.get("session") == session[:8])
    assert record["identity"] == "proxy#alice"
    header = f"Mcp-Session-Id: {session}"
    assert site.send("DELETE", "/time/mcp", header, basic("bob"), line).status == 404
    assert site.send("DELETE", "/time/mcp", header, basic("alice"), line).status == 200


def test_nginx_admits_nobody_without_a_password(identified: Identified) -> None:
    site, name = identified
    wrong = basic("alice")[:-4] + "AAA="
    for lines in ([f"{name}: alice"], [f"{name}: alice", wrong]):
        answer = site.post("/time/mcp", INITIALIZE, *lines)
        assert (answer.status, answer.challenge) == (401, 'Basic realm="mcp"')


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.6"])
def test_header_is_not_believed_from_elsewhere(
    passwords: Mapping[str, Identified], address: str
) -> None:
    """Whoever goes around nginx is nobody, also one that claims to be behind it."""
    site, name = passwords["tcp"]
    session = initialize(site, basic("alice"))
    believed = ["", f"X-Forwarded-For: {PROXY}", f"Forwarded: for={PROXY}"]
    for more in believed:
        for target, method in (("mcp", "POST"), ("mcp", "DELETE"), ("sse", "GET")):
            lines = [f"Host: {HOST}", f"{name}: alice", f"Mcp-Session-Id: {session}"]
            lines += [f"Accept: {ACCEPT}", "Content-Type: application/json", *filter(None, [more])]
            lines += ["Content-Length: 0"] * (method == "POST")
            text = "".join(f"{line}\r\n" for line in lines)
            with Wire(site.bridge.port, address) as wire:
                sent = f"{method} /time/{target} HTTP/1.1\r\n{text}\r\n".encode()
                assert wire.ask(sent).status == 401
    header = f"Mcp-Session-Id: {session}"
    assert site.send("DELETE", "/time/mcp", header, basic("alice")).status == 200
