"""
What to write where so that a client connects: commands, configuration files and programs of
the usual clients.

Knows clients and their spelling, which README.md and docs/authentication.md show in the same
way; must not know requests, nor any real credentials.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

#: How many servers are cached with their snippets, which are made for each view otherwise.
KNOWN_TARGETS = 256
#: Stands for a token where a client's file has no variables.
PLACEHOLDER = "YOUR_TOKEN"
_NOT_IN_CLAUDE = re.compile(r"[^A-Za-z0-9_-]+")
_NOT_IN_VARIABLE = re.compile(r"[^A-Za-z0-9]+")
#: mcp-remote takes http:// to these hosts without being told to.
_LOCAL = ("localhost", "127.0.0.1")
_REVISION = "2026-07-28"
_PREFIX = "io.modelcontextprotocol/"


class Credentials(Enum):
    """What a client has to send to be let in."""

    NONE = "none"
    #: `Authorization: Bearer TOKEN`.
    TOKEN = "token"
    #: The same, and clients get the token themselves: they ask their users to log in.
    OAUTH = "oauth"
    #: What its operator has agreed with its users, such as a certificate.
    OTHER = "other"


class Target(NamedTuple):
    """
    A server as clients see it.  `headers` are those that give its processes their variables
    (`env_from`), for which each client has values of its own.
    """

    name: str
    mcp: str
    credentials: Credentials = Credentials.NONE
    headers: tuple[str, ...] = ()

    def fields(self) -> list[Field]:
        """Return the header fields that a client has to send."""
        found = [Field("Authorization", "Bearer ", "MCP_TOKEN")] if self._needs_token else []
        return found + [Field(each, "", _variable(each)) for each in self.headers]

    @property
    def _needs_token(self) -> bool:
        return self.credentials is Credentials.TOKEN


class Field(NamedTuple):
    """A header field: a text before a secret, which is in a variable of this name."""

    name: str
    before: str
    variable: str

    def with_value(self, value: str) -> str:
        """Return the value of the field, with this in place of the secret."""
        return f"{self.before}{value}"

    def for_shell(self) -> str:
        """Return the field as an argument of a shell, which sets the secret."""
        text = re.sub(r'(["\\$`])', r"\\\1", f"{self.name}: {self.before}")
        return f'"{text}${self.variable}"'


class Client(NamedTuple):
    """
    A client: where what `render` returns belongs.

    `render` takes several servers if `takes_several`, and otherwise one.
    """

    ident: str
    title: str
    where: str
    render: Callable[[Sequence[Target]], str]
    takes_several: bool = True


def _claude_code(targets: Sequence[Target]) -> str:
    lines = []
    for each in targets:
        name = _NOT_IN_CLAUDE.sub("-", each.name).strip("-") or "server"
        parts = ["claude mcp add --transport http", shlex.quote(name), shlex.quote(each.mcp)]
        parts += [f"--header {field.for_shell()}" for field in each.fields()]
        lines.append(" ".join(parts))
    return "\n".join(lines)


def _claude_desktop(targets: Sequence[Target]) -> str:
    servers: dict[str, object] = {}
    for each in targets:
        args = ["-y", "mcp-remote", each.mcp, "--transport", "http-only"]
        url = urlsplit(each.mcp)
        if url.scheme == "http" and url.hostname not in _LOCAL:
            args.append("--allow-http")
        env = {}
        for field in each.fields():
            # Without a space: some versions split the argument there.
            name = "AUTH_HEADER" if field.before else field.variable
            args += ["--header", f"{field.name}:${{{name}}}"]
            env[name] = field.with_value(PLACEHOLDER if field.before else f"YOUR_{name}")
        servers[each.name] = {"command": "npx", "args": args, **({"env": env} if env else {})}
    return _file({"mcpServers": servers})


def _vs_code(targets: Sequence[Target]) -> str:
    inputs: dict[str, object] = {}
    servers: dict[str, object] = {}
    for each in targets:
        headers = {}
        for field in each.fields():
            ident = "token" if field.before else field.variable.lower()
            described = "Token" if field.before else field.name
            inputs[ident] = {
                "type": "promptString",
                "id": ident,
                "description": described,
                "password": True,
            }
            headers[field.name] = field.with_value(f"${{input:{ident}}}")
        server = {"type": "http", "url": each.mcp}
        servers[each.name] = {**server, **({"headers": headers} if headers else {})}
    asked = {"inputs": list(inputs.values())} if inputs else {}
    return _file({**asked, "servers": servers})


def _cursor(targets: Sequence[Target]) -> str:
    servers: dict[str, object] = {}
    for each in targets:
        headers = {
            field.name: field.with_value(f"${{env:{field.variable}}}") for field in each.fields()
        }
        servers[each.name] = {"url": each.mcp, **({"headers": headers} if headers else {})}
    return _file({"mcpServers": servers})


def _python(targets: Sequence[Target]) -> str:
    [target] = targets
    fields = target.fields()
    if not fields:
        return (
            "import asyncio\n\nfrom mcp import Client\n\n\n"
            "async def main():\n"
            f"    async with Client({json.dumps(target.mcp)}) as client:\n"
            "        print(await client.list_tools())\n\n\n"
            "asyncio.run(main())"
        )
    headers = "".join(
        f"    {json.dumps(each.name)}: {_before(each)}os.environ[{json.dumps(each.variable)}],\n"
        for each in fields
    )
    return (
        "import asyncio\nimport os\n\nimport httpx2\nfrom mcp import Client\n"
        "from mcp.client.streamable_http import streamable_http_client\n\n"
        f"URL = {json.dumps(target.mcp)}\n"
        f"HEADERS = {{\n{headers}}}\n\n\n"
        "async def main():\n"
        "    async with httpx2.AsyncClient(headers=HEADERS, timeout=60) as http_client:\n"
        "        transport = streamable_http_client(URL, http_client=http_client)\n"
        "        async with Client(transport) as client:\n"
        "            print(await client.list_tools())\n\n\n"
        "asyncio.run(main())"
    )


def _typescript(targets: Sequence[Target]) -> str:
    [target] = targets
    fields = "".join(
        f"    {json.dumps(each.name)}: {_before(each)}process.env[{json.dumps(each.variable)}],\n"
        for each in target.fields()
    )
    options = f", {{\n  requestInit: {{ headers: {{\n{fields}  }} }},\n}}" if fields else ""
    return (
        'import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";\n\n'
        f"const url = new URL({json.dumps(target.mcp)});\n"
        f"const transport = new StreamableHTTPClientTransport(url{options});\n"
        'const client = new Client({ name: "my-client", version: "1.0.0" });\n'
        "await client.connect(transport);\n"
        "console.log(await client.listTools());\n"
        "await client.close();"
    )


def _curl(targets: Sequence[Target]) -> str:
    [target] = targets
    meta = {
        f"{_PREFIX}protocolVersion": _REVISION,
        f"{_PREFIX}clientInfo": {"name": "curl", "version": "1"},
        f"{_PREFIX}clientCapabilities": {},
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    lines = [
        f"curl -s {shlex.quote(target.mcp)}",
        "-H 'Content-Type: application/json'",
        "-H 'Accept: application/json, text/event-stream'",
        f"-H 'MCP-Protocol-Version: {_REVISION}'",
        "-H 'Mcp-Method: tools/list'",
        *(f"-H {field.for_shell()}" for field in target.fields()),
        f"-d '{json.dumps(message, separators=(',', ':'))}'",
    ]
    return " \\\n    ".join(lines)


CLIENTS: tuple[Client, ...] = (
    Client("claude-code", "Claude Code", "In a terminal", _claude_code),
    Client("claude-desktop", "Claude Desktop", "In claude_desktop_config.json", _claude_desktop),
    Client("vs-code", "VS Code", "In .vscode/mcp.json", _vs_code),
    Client("cursor", "Cursor", "In ~/.cursor/mcp.json, or .cursor/mcp.json of a project", _cursor),
    Client("python", "Python", "With SDK 2.x (pip install mcp)", _python, takes_several=False),
    Client(
        "typescript",
        "TypeScript",
        "With SDK 2.x (npm install @modelcontextprotocol/client), in an ES module",
        _typescript,
        takes_several=False,
    ),
    Client("curl", "curl", "In a terminal: lists the tools", _curl, takes_several=False),
)


@lru_cache(KNOWN_TARGETS)
def rendered(target: Target) -> tuple[tuple[Client, str], ...]:
    """Return each client, and what connects it to a server."""
    return tuple((each, each.render([target])) for each in CLIENTS)


@lru_cache(KNOWN_TARGETS)
def configurations(target: Target) -> dict[str, Any]:
    """
    Return what configures clients for a server, by their `ident`: the content of a file as it
    is, a command as a string.  Programs that use an SDK need nothing but the URL.
    """
    return {
        client.ident: json.loads(text) if text[:1] == "{" else text
        for client, text in rendered(target)
        if client.takes_several
    }


def _before(field: Field) -> str:
    """Return the text before a secret as part of an expression, of Python and TypeScript alike."""
    return f"{json.dumps(field.before)} + " if field.before else ""


def _file(value: object, depth: int = 0) -> str:
    """Return JSON as people write it: what is small is on one line."""
    inner, outer = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    if isinstance(value, dict) and (depth < 2 or any(map(_is_nested, value.values()))):
        members = (f"{_text(name)}: {_file(each, depth + 1)}" for name, each in value.items())
        return f"{{{inner}{f',{inner}'.join(members)}{outer}}}"
    if isinstance(value, list) and any(map(_is_nested, value)):
        return f"[{inner}{f',{inner}'.join(map(_text, value))}{outer}]"
    return _text(value)


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _variable(header: str) -> str:
    """Return the name of a variable for a header of the operator's choice."""
    return _NOT_IN_VARIABLE.sub("_", header).strip("_").upper() or "HEADER"
