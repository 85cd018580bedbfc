"""`mcpbridge check`: every error of a file in one run, what would run, and no secret."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcpbridge.check.command import NAMED_SERVERS
from mcpbridge.check.facts import SHOWN_NAMES
from mcpbridge.check_command import USAGE, check_command

#: In each value that must not be shown.
SECRET = "hush"
DIGEST = "a1" * 32
CAT = {"command": "cat"}


class WrongFile(NamedTuple):
    """A file, and its errors: the line, the key, and what the text has."""

    text: str
    errors: list[tuple[int, str, str]]


#: Every file in a folder with `open` (a secret that everybody can change), `short` (a token
#: of a few characters), `latin` (not UTF-8) and `bad.env`.
WRONG = {
    "json": WrongFile('{"mcpServers": {\n"a": hush}}', [(2, "", "expected a value, got 'h'")]),
    "top": WrongFile(
        """{
        "mcpServer": {},
        "brigde": {}
        }""",
        [(2, "mcpServer", "did you mean `mcpServers`"), (3, "brigde", "did you mean `bridge`")],
    ),
    "twice": WrongFile(
        """{"servers": {
        "a": {"command": "cat"},
        "a": {"command": "cat", "command": "", "args": "hush"}
        }}""",
        [
            (2, "servers.a", "duplicate key; it is set again in line 3"),
            (2, "servers.a.command", "duplicate key; it is set again in line 3"),
            (2, "servers.a.command", "expected a non-empty string"),
            (3, "servers.a.args", "expected a list of strings"),
        ],
    ),
    "names": WrongFile(
        """{"mcpServers": {"a": {
        "comand": "hush",
        "arguments": [],
        "maxSessions": 3,
        "listen": ["tcp:1"],
        "exludeTools": ["x"]
        }}}""",
        [
            (2, "mcpServers.a.comand", "did you mean `command`"),
            (3, "mcpServers.a.arguments", "did you mean `args`"),
            (4, "mcpServers.a.maxSessions", "did you mean `max_sessions`"),
            (5, "mcpServers.a.listen", "move it to `bridge.listen`"),
            (6, "mcpServers.a.exludeTools", "did you mean `excludeTools`"),
        ],
    ),
    "values": WrongFile(
        """{"mcpServers": {"a": {"command": "cat",
        "args": ["x", 1,
          null],
        "env": {"A": 1,
          "B=hush": "x"},
        "ping_interval": -1,
        "json_response": "yes",
        "base_uri": "x/",
        "stderr_log": "never"
        }}}""",
        [
            (2, "mcpServers.a.args[1]", "expected a string"),
            (3, "mcpServers.a.args[2]", "expected a string"),
            (4, "mcpServers.a.env.A", "expected a string"),
            (4, "mcpServers.a.env", "B=..."),
            (6, "mcpServers.a.ping_interval", "expected a number of seconds"),
            (7, "mcpServers.a.json_response", "expected true or false"),
            (8, "mcpServers.a.base_uri", "expected an empty string, or a path"),
            (9, "mcpServers.a.stderr_log", "expected `log`, `file` or `none`"),
        ],
    ),
    "variables": WrongFile(
        """{"mcpServers": {"a": {"command": "cat",
        "args": ["${NO}", "${input:x}",
          "${NO:?hush}"],
        "env": {"A": "${", "B": "${file:none}",
          "C": "${file:open}", "D": "${file:.}", "E": "${file:latin}"},
        "max_sessions": "${HUSH}"
        }}}""",
        [
            (2, "mcpServers.a.args[0]", "the environment variable NO is not set"),
            (2, "mcpServers.a.args[1]", "would ask the user of an editor"),
            (3, "mcpServers.a.args[2]", "is not supported"),
            (4, "mcpServers.a.env.A", "`${` has no `}`"),
            (4, "mcpServers.a.env.B", "No such file or directory"),
            (5, "mcpServers.a.env.C", "every user of this machine can change `${file:open}`"),
            (5, "mcpServers.a.env.D", "it is a directory"),
            (5, "mcpServers.a.env.E", "is not valid UTF-8"),
            (6, "mcpServers.a.max_sessions", "once its variables are replaced"),
        ],
    ),
    "env files": WrongFile(
        """{"mcpServers": {
        "a": {"command": "cat", "envFile": "none.env"},
        "b": {"command": "cat", "envFile": "bad.env"},
        "c": {"command": "cat", "envFile": 1}
        }}""",
        [
            (2, "mcpServers.a.envFile", "No such file or directory"),
            (3, "mcpServers.b.envFile", "line 2: expected NAME=VALUE"),
            (4, "mcpServers.c.envFile", "expected the path of a file"),
        ],
    ),
    "remote": WrongFile(
        """{"mcpServers": {
        "a": {"url": "http://u:hush@x/"},
        "b": {"type": "http"},
        "c": {"url": "https://x/", "command": "cat", "envFile": "x"},
        "d": {"url": "https://x/", "headers": {"Host": "hush",
          "X-A": "hush\\n"}},
        "e": {"serverUrl": "https://x/?hush", "httpUrl": "https://y/",
          "ca_file": "bad.env"},
        "f": {"url": "https://x/", "oauth": {"clientSecret": "hush"}}
        }}""",
        [
            (2, "mcpServers.a.url", "with a user or a password"),
            (3, "mcpServers.b.type", "needs a `url`"),
            (4, "mcpServers.c.envFile", "has no environment"),
            (4, "mcpServers.c.url", "either `command` or `url`"),
            (5, "mcpServers.d.headers.Host", "the bridge sets this one"),
            (6, "mcpServers.d.headers.X-A", "printable ASCII"),
            (7, "mcpServers.e.httpUrl", "another URL than `serverUrl`"),
            (9, "mcpServers.f.oauth", "does not log in"),
        ],
    ),
    "authorities": WrongFile(
        """{"mcpServers": {
        "a": {"url": "https://x/", "ca_file": "bad.env"},
        "b": {"url": "https://x/", "ca_file": "none.pem"}
        }}""",
        [
            (2, "mcpServers.a.ca_file", "no certificates in PEM"),
            (3, "mcpServers.b.ca_file", "No such file or directory"),
        ],
    ),
    "tools": WrongFile(
        """{"mcpServers": {
        "a": {"command": "cat", "tools": {"allow": "x", "denied": []}},
        "b": {"command": "cat", "includeTools": ["a"], "enabledTools": ["b"]},
        "c": {"command": "cat", "tools": {"identities": {"x": {"allow": [1]}}}},
        "d": {"command": "cat", "disabledTools": "hush", "includeTags": ["x"]}
        }}""",
        [
            (2, "mcpServers.a.tools.allow", "expected a list of names"),
            (2, "mcpServers.a.tools.denied", "`allow` or `deny`"),
            (3, "mcpServers.b.enabledTools", "another key"),
            (4, "mcpServers.c.tools.identities.x.allow[0]", "a name of 1 to 2048"),
            (5, "mcpServers.d.disabledTools", "expected a list of names"),
            (5, "mcpServers.d.includeTags", "restricts tools by tags"),
        ],
    ),
    "confinement": WrongFile(
        """{"mcpServers": {"a": {"command": "cat",
        "user": "no one", "umask": "0999", "nice": 20,
        "limits": {"open_files": 1,
          "cpu_seconds": "1",
          "nproc": 1},
        "private_tmp": 1
        }}}""",
        [
            (2, "mcpServers.a.user", "the name or the numeric id"),
            (2, "mcpServers.a.umask", "an octal number"),
            (2, "mcpServers.a.nice", "an integer from -20 to 19"),
            (3, "mcpServers.a.limits.open_files", "an integer ≥ 16"),
            (4, "mcpServers.a.limits.cpu_seconds", "an integer ≥ 1"),
            (3, "mcpServers.a.limits", "the key 'nproc'"),
            (6, "mcpServers.a.private_tmp", "true or false"),
        ],
    ),
    "contradictions": WrongFile(
        """{"mcpServers": {"a": {"command": "cat",
        "stderr_log": "file",
        "warm": 1, "env_from": {"A": {"header": "X-A"}},
        "connect_timeout": 3, "max_sessions": 0
        }}}""",
        [
            (1, "mcpServers.a.stderr_dir", "because `stderr_log` is `file`"),
            (3, "mcpServers.a.warm", "with `env_from`"),
            (4, "mcpServers.a.connect_timeout", "because there is no `url`"),
            (4, "mcpServers.a.max_sessions", "an integer ≥ 1"),
        ],
    ),
    "env_from": WrongFile(
        """{"mcpServers": {"a": {"command": "cat", "env_from": {
        "PATH": {"header": "X-A"},
        "B": {"header": "X A", "claim": 1},
        "C": {},
        "D": {"header": "Host"}
        }}}}""",
        [
            (2, "mcpServers.a.env_from.PATH", "decide which program runs"),
            (3, "mcpServers.a.env_from.B.header", "`header` or `claim`"),
            (3, "mcpServers.a.env_from.B.claim", "`header` or `claim`"),
            (4, "mcpServers.a.env_from.C", "got neither"),
            (5, "mcpServers.a.env_from.D.header", "as this one is of the protocol"),
        ],
    ),
    "paths": WrongFile(
        """{"mcpServers": {
        "a": {"command": "cat"},
        "b": {"command": "cat", "base_uri": "/a"},
        "c": {"command": "cat", "base_uri": "/a/sse/x"},
        "\\u00fc": {"command": "cat"}
        }}""",
        [
            (3, "mcpServers.b.base_uri", "collides with '/a' of server 'a'"),
            (4, "mcpServers.c.base_uri", "collides with '/a' of server 'a'"),
            (5, "mcpServers.ü", "no path can be made of the name"),
        ],
    ),
    "bridge": WrongFile(
        """{"mcpServers": {"a": {"command": "cat"}}, "bridge": {
        "listen": ["tcp:x",
          "8808",
          "https:8443:certificate=none.pem"],
        "warm": 1,
        "max_sesions": 2,
        "trusted_proxies": ["proxy"],
        "defaults": {"command": "x",
          "stop_grace": -1},
        "public_url": "x"
        }}""",
        [
            (2, "bridge.listen[0]", "expected an endpoint description"),
            (3, "bridge.listen[1]", "a port alone"),
            (4, "bridge.listen[2]", "No such file or directory"),
            (5, "bridge.warm", "use `bridge.defaults.warm`"),
            (6, "bridge.max_sesions", "did you mean `max_sessions`"),
            (7, "bridge.trusted_proxies", "IP addresses"),
            (8, "bridge.defaults.command", "a setting of a single server"),
            (9, "bridge.defaults.stop_grace", "expected a number of seconds"),
            (10, "bridge.public_url", "a URL without a path"),
        ],
    ),
    "limits": WrongFile(
        """{"mcpServers": {"a": {"command": "cat", "max_message_bytes": 1000}}, "bridge": {
        "max_request_bytes": 10,
        "max_response_bytes": 20,
        "max_request_bytes_per_address": 30
        }}""",
        [
            (2, "bridge.max_request_bytes", "at least 1000"),
            (3, "bridge.max_response_bytes", "at least 1000"),
            (4, "bridge.max_request_bytes_per_address", "at least 1000"),
        ],
    ),
    "auth": WrongFile(
        """{"mcpServers": {"a": {"command": "cat"}}, "bridge": {"auth": {
        "token": {},
        "tokens": {
          "alice": {"sha256": "hush", "scopes": ["a b"]},
          "bob": {"token": "hush"},
          "a b": {}},
        "oauth": {"audience": "x",
          "trusted_hosts": [1]},
        "proxy": {"header": "X User"}
        }}}""",
        [
            (1, "bridge.auth", "the key `token`"),
            (4, "bridge.auth.tokens.alice.sha256", "64 hexadecimal digits"),
            (4, "bridge.auth.tokens.alice.scopes[0]", "a scope"),
            (5, "bridge.auth.tokens.bob", "the key `token`"),
            (3, "bridge.auth.tokens", "names of 1 to 64"),
            (7, "bridge.auth.oauth.issuer", "expected a value"),
            (7, "bridge.auth.oauth.audience", "a list"),
            (8, "bridge.auth.oauth.trusted_hosts[0]", "a string"),
            (9, "bridge.auth.proxy.header", "the name of an HTTP header"),
            (9, "bridge.auth.proxy.addresses", "expected a value"),
        ],
    ),
    "auth together": WrongFile(
        """{"mcpServers": {"a": {"command": "cat"}}, "bridge": {"auth": {
        "tokens": {"alice": {},
          "bob": {"file": "x", "sha256": "DIGEST"}},
        "oauth": {"issuer": "http://example.org",
          "jwks_uri": "ftp://hush", "algorithms": ["HS256"]},
        "proxy": {"header": "Cookie", "addresses": []}
        }}}""".replace("DIGEST", DIGEST),
        [
            (2, "bridge.auth.tokens.alice", "got neither"),
            (3, "bridge.auth.tokens.bob", "got both"),
            (4, "bridge.auth.oauth.issuer", "one of http"),
            (5, "bridge.auth.oauth.jwks_uri", "no URL of https"),
            (5, "bridge.auth.oauth.algorithms", "whose secret the bridge would share"),
            (6, "bridge.auth.proxy.addresses", "an empty list"),
            (6, "bridge.auth.proxy.header", "a header of the proxy's own"),
        ],
    ),
    "auth files": WrongFile(
        """{"mcpServers": {
        "a": {"command": "cat", "auth": {"tokens": {"eve": {"file": "none"}}}},
        "b": {"command": "cat"}}, "bridge": {"public_url": "https://x", "auth": {
        "tokens": {"alice": {"file": "none"},
          "bob": {"file": "open"}, "carol": {"file": "short"}},
        "oauth": {"issuer": "https://x", "ca_file": "bad.env",
          "introspection": {"client_id": "x", "client_secret_file": "none"}},
        "authenticator": "no.such.Thing",
        "scopes": {"tools/cal": "x", "tools/list": {"a": "x"}}
        }}}""",
        [
            (2, "mcpServers.a.auth.tokens.eve.file", "No such file or directory"),
            (4, "bridge.auth.tokens.alice.file", "No such file or directory"),
            (5, "bridge.auth.tokens.bob.file", "everybody can write"),
            (5, "bridge.auth.tokens.carol.file", "at least 22 characters"),
            (6, "bridge.auth.oauth.ca_file", "no certificate in PEM"),
            (7, "bridge.auth.oauth.introspection.client_secret_file", "No such file"),
            (8, "bridge.auth.authenticator", "ObjectNotFound"),
            (9, "bridge.auth.scopes", "did you mean `tools/call`"),
            (9, 'bridge.auth.scopes["tools/list"]', "name something"),
        ],
    ),
    "public url": WrongFile(
        """{"mcpServers": {
        "a": {"command": "cat"},
        "b": {"command": "cat", "auth": {"scopes": "x"}}
        }, "bridge": {"max_request_bytes": 1,
        "auth": {"oauth": {"issuer": "https://x"}}}}""",
        [
            (4, "bridge.max_request_bytes", "at least"),
            (4, "bridge.public_url", "because `auth.oauth` is set"),
        ],
    ),
    "extensions": WrongFile(
        """{"mcpServers": {"a": {"command": "cat",
        "launcher": "no.such.Launcher",
        "limiter": "builtins.id",
        "observers": ["builtins.len"],
        "filters": ["x"]
        }, "b": {"command": "cat",
        "event_store": "os.getcwd",
        "observers": ["no.such.Observer", "builtins.id"]
        }}}""",
        [
            (5, "mcpServers.a.filters", "dotted names"),
            (7, "mcpServers.b.event_store", "os.getcwd"),
            (8, "mcpServers.b.observers", "no.such.Observer"),
            (8, "mcpServers.b.observers", "builtins.id"),
        ],
    ),
    "programs": WrongFile(
        """{"mcpServers": {
        "a": {"command": "no-such-program-here"},
        "b": {"command": "${HUSH}-program"},
        "c": {"command": "cat", "cwd": "no/such/folder"},
        "d": {"command": "./bad.env", "cwd": "."},
        "e": {"command": "cat", "stderr_log": "file", "stderr_dir": "none"}
        }, "bridge": {"audit_log": "none/audit.log"}}""",
        [
            (2, "mcpServers.a.command", "it was not found in the backend's PATH"),
            (3, "mcpServers.b.command", "'${HUSH}-program'"),
            (4, "mcpServers.c.cwd", "does not exist"),
            (5, "mcpServers.d.command", "is not executable"),
            (6, "mcpServers.e.stderr_dir", "there is no such directory"),
            (7, "bridge.audit_log", "there is no such directory"),
        ],
    ),
    "exposed": WrongFile(
        """{"mcpServers": {
        "a": {"command": "cat", "auth": false},
        "b": {"command": "cat"}
        }, "bridge": {"listen": ["tcp:8808:interface=127.0.0.1",
        "tcp:8809",
        "tcp6:8810:interface=\\\\:\\\\:"],
        "auth": {"tokens": {"alice": {"sha256": "DIGEST"}}}}}""".replace("DIGEST", DIGEST),
        [
            (5, "bridge.listen[1]", "'a' would let everybody in"),
            (6, "bridge.listen[2]", "'a' would let everybody in"),
        ],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the configuration names."""
    contents = {"open": b"hush", "short": b"hush", "latin": b"hush\xff", "bad.env": b"A=1\nhush"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o666 if name == "open" else 0o600)
    monkeypatch.setenv("HUSH", "hush-value")
    monkeypatch.delenv("NO", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Checked(NamedTuple):
    """What one run of the command has printed."""

    status: int
    text: str


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> Checked:
    status = check_command(arguments)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return Checked(status, printed.out + printed.err)


@pytest.mark.parametrize("name", WRONG)
def test_every_error_is_reported_in_one_run(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its line and its key; no secret and no value of a variable is shown."""
    wrong = WRONG[name]
    (folder / "mcp.json").write_text(wrong.text, encoding="utf-8")
    status, text = check(capsys, "mcp.json")
    assert status == 1
    lines = [line for line in text.splitlines() if line.startswith("mcp.json:")][:-1]
    for line, key, phrase in wrong.errors:
        start = f"mcp.json:{line}: {key}: " if key else f"mcp.json:{line}:"
        assert any(each.startswith(start) and phrase in each for each in lines), (start, phrase)
    assert len(lines) == len(wrong.errors)
    assert f"{len(lines)} error" in text
    assert SECRET not in text.replace("${HUSH}", "").replace("no such", "").lower()


def test_there_are_enough_wrong_files() -> None:
    assert len(WRONG) >= 20
    assert sum(len(each.errors) for each in WRONG.values()) >= 60


def right(folder: Path, bridge: dict[str, Any], **servers: Any) -> str:
    path = folder / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers, "bridge": bridge}, indent=1))
    return str(path)


def test_what_would_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In 80 columns; with secrets masked; the exit status is 0."""
    (folder / "token").write_text("hush" * 8)
    (folder / "token").chmod(0o644)
    path = right(
        folder,
        {
            "auth": {"tokens": {"alice": {"file": "token"}}},
            "listen": ["tcp:8808:interface=127.0.0.1", "unix:/run/mcp.sock"],
            "audit_log": "audit.log",
        },
        one={
            "command": "cat",
            "args": ["--api-key", "hush", "--url=https://u:hush@x/?hush=1", "${HUSH}", "$HUSH"],
            "env": {"TOKEN": "hush", "OTHER": "${HUSH}"},
            "cwd": "${PWD}",
            "tools": {"allow": ["read_*"], "deny": ["read_secret"]},
            "limits": {"core": 0},
            "icon": "x",
        },
        two={
            "url": "https://example.org/mcp?key=hush",
            "headers": {"Authorization": "Bearer hush"},
            "auth": False,
        },
        off={"command": "no-such-program", "disabled": True},
    )
    status, text = check(capsys, path)
    assert status == 0, text
    plain = " ".join(text.split())
    for each in (
        "one paths /one/mcp /one/sse",
        "command cat --api-key *** '--url=https://***@x/?hush=***'".replace("hush=", "hush="),
        "env TOKEN=*** OTHER=***",
        "tools only read_* not read_secret",
        "callers named tokens: alice",
        "confinement core 0",
        "remote https://example.org/mcp?key=***",
        "headers Authorization: ***",
        "callers everybody who reaches the bridge",
        "off disabled",
        "listen tcp:8808:interface=127.0.0.1 unix:/run/mcp.sock",
        "100 processes, 50 for each client address",
        "`icon` (in one) is not a setting of mcpbridge and is ignored",
        "every user of this machine can read the secret",
        "no errors",
    ):
        assert each in plain, (each, text)
    assert re.search(r"program\s+/\S*/cat$", text, re.MULTILINE)
    assert all(len(line) <= 80 for line in text.splitlines() if "/tmp" not in line)
    assert not {*os.listdir(folder)} & {"audit.log"}


def test_a_state_directory_that_cannot_be_used_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not made, either."""
    (folder / "file").touch()
    status, text = check(capsys, right(folder, {"state_dir": "file/x"}, a={"command": "cat"}))
    assert (status, "a start after a kill would clean up nothing" in " ".join(text.split())) == (
        0,
        True,
    )
    status, text = check(capsys, right(folder, {"state_dir": "new/x"}, a={"command": "cat"}))
    assert (status, "clean up" in text) == (0, False)
    assert not (folder / "new").exists()


def test_the_admin_listener_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = {"ann": {"sha256": "0" * 64}}
    tcp = "tcp:9090:interface=127.0.0.1"
    bridge = {"admin_listen": ["unix:/run/a.sock", tcp], "admin_tokens": tokens}
    status, text = check(capsys, right(folder, bridge, a={"command": "cat"}))
    assert (status, "unix:/run/a.sock" in text) == (0, True)
    wrong = {"admin_listen": ["tcp", tcp], "admin_tokens": {"ann": {"file": "short"}}}
    status, text = check(capsys, right(folder, wrong, a={"command": "cat"}))
    assert (status, "bridge.admin_listen[0]: expected an endpoint description" in text) == (1, True)
    wrong["admin_listen"] = [tcp]
    status, text = check(capsys, right(folder, wrong, a={"command": "cat"}))
    told = " ".join(text.split())
    assert (status, "admin_tokens.ann.file: expected a file with one secret" in told) == (1, True)
    assert "hush" not in text
    status, text = check(capsys, right(folder, {"admin_listen": ["none"]}, a={"command": "cat"}))
    assert status == 0, text
    status, text = check(capsys, "--admin-listen", "tcp", right(folder, {}, a={"command": "cat"}))
    assert (status, "--admin-listen (bridge.admin_listen): expected" in text) == (1, True)


def test_a_report_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = right(
        folder, {}, a={"command": "cat"}, b={"command": "cat", "args": 1}, c={"disabled": True}
    )
    status, text = check(capsys, "--json", path)
    report = json.loads(text)
    assert (status, report["ok"], report["file"]) == (1, False, path)
    [error] = report["errors"]
    assert (error["file"], error["line"], error["key"]) == (path, 8, "mcpServers.b.args")
    assert error["message"].startswith("expected a list of strings")
    statuses = {each["name"]: each["status"] for each in report["servers"]}
    assert statuses == {"a": "served", "b": "not served", "c": "disabled"}
    assert report["servers"][0]["facts"]["command"] == ["cat"]
    assert report["bridge"]["listen"] == ["tcp:8808:interface=127.0.0.1"]


def test_long_lists_are_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NAMED_SERVERS in an error, and SHOWN_NAMES of what would run."""
    names = [f"t{number}" for number in range(SHOWN_NAMES + 2)]
    servers = {f"s{number}": {**CAT, "tools": names} for number in range(NAMED_SERVERS + 2)}
    _, text = check(capsys, right(folder, {"listen": ["tcp:1"]}, **servers))
    plain = " ".join(text.split())
    assert f"'s{NAMED_SERVERS - 1}' and 2 more would let everybody in" in plain
    assert f"tools only {', '.join(names[:SHOWN_NAMES])} and 2 more" in plain


def test_options_take_the_place_of_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = right(folder, {"listen": ["tcp:8808"], "max_sessions": 0}, a={"command": "cat"})
    assert check(capsys, path).status == 1
    path = right(folder, {"listen": ["tcp:8808"]}, a={"command": "cat"})
    assert check(capsys, "--host", "127.0.0.1", path).status == 0
    status, text = check(capsys, "--bridge-max-sessions", "0", "--host", "127.0.0.1", path)
    assert (status, "--bridge-max-sessions (bridge.max_sessions): expected" in text) == (1, True)
    status, text = check(capsys, "--insecure", path)
    assert (status, "`insecure` lets everybody" in text) == (0, True)


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--config", "a", "b")])
def test_one_file_is_needed(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, text = check(capsys, *arguments)
    assert (status, text.startswith("mcpbridge check: expected one FILE")) == (1, True)


def test_help_and_wrong_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, "--help") == (0, USAGE)
    status, text = check(capsys, "--jsn", "x")
    assert (status, text) == (1, "mcpbridge: unknown option --jsn; did you mean --json?\n")
    assert check(capsys, "none.json").status == 1
