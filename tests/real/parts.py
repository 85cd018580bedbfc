"""
The third-party clients and servers of the end-to-end tests, and what happens if one is missing.

`make real` builds them into `.real/`.  A test that needs a missing one is
skipped, with a hint; if `CI` or `MCPBRIDGE_REQUIRE_REAL` is set, it fails.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
REAL = ROOT / ".real"
MODULES = REAL / "node" / "node_modules"
CLIENTS = ROOT / "tests" / "clients"


def required() -> bool:
    """Return True if a missing part is a failure."""
    return bool(os.environ.get("CI") or os.environ.get("MCPBRIDGE_REQUIRE_REAL"))


def need(present: object, reason: str) -> None:
    """Skip the test unless the part is present; fail it if real parts are required."""
    if not present:
        if required():
            pytest.fail(f"missing: {reason}", pytrace=False)
        pytest.skip(reason)


def need_processes() -> None:
    """Skip or fail the test unless there is a /proc in which to count processes."""
    need(Path("/proc/self/stat").exists(), "processes are counted in /proc, which is not there")


def built(path: Path) -> str:
    """Return the path of a part that `make real` builds."""
    need(path.exists(), f"{path.relative_to(ROOT)} is not there: run `make real`")
    return str(path)


def command(name: str) -> str:
    """Return the path of a command of this machine."""
    path = shutil.which(name)
    need(path, f"{name} is not on PATH")
    return str(path)


def beside_python(name: str) -> str:
    """Return the path of a script that is installed beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    need(path.exists(), f"{name} is not installed beside {sys.executable}")
    return str(path)


@cache
def node() -> str:
    """Return the Node to run servers with: the pinned one, or else that of the machine."""
    need(
        MODULES.exists(), f"{MODULES.relative_to(ROOT)} is not there: install npm, run `make real`"
    )
    pinned = MODULES / ".bin" / "node"
    return str(pinned) if pinned.exists() else command("node")


@dataclass(frozen=True)
class Client:
    """A real client: a script, and the Python environment that has its SDK."""

    environment: str
    script: str

    def command(self) -> list[str]:
        """Return the command line, up to the arguments of the script."""
        python = built(REAL / self.environment / "bin" / "python")
        return [python, str(CLIENTS / self.script)]


@dataclass(frozen=True)
class JavaScriptClient(Client):
    """A real client in JavaScript: a script, and the folder that has its SDK."""

    def command(self) -> list[str]:
        """Return the command line, up to the arguments of the script."""
        modules = built(REAL / self.environment / "node_modules")
        return [command("env"), f"NODE_PATH={modules}", node(), str(CLIENTS / self.script)]


@dataclass(frozen=True)
class DrivenClient(Client):
    """A real client that is a program: a script that runs it, and its entry point."""

    start: str

    def command(self) -> list[str]:
        """Return the command line, up to the arguments of the script."""
        start = built(REAL / self.environment / "node_modules" / self.start)
        return [sys.executable, str(CLIENTS / self.script), node(), start]


#: Clients on the official Python SDK: `ClientSession` of both generations, which
#: begins with `initialize`, and `Client` of the second, which begins with
#: `server/discover`.
CLIENTS_BY_NAME = {
    "mcp-1-session": Client("client1", "session.py"),
    "mcp-2-session": Client("client2", "session.py"),
    "mcp-2-client": Client("client2", "discovering.py"),
}
#: The same, and other third-party clients.
ALL_CLIENTS = {
    **CLIENTS_BY_NAME,
    "fastmcp": Client("fastmcp", "fast.py"),
    "npm-sdk-1": JavaScriptClient("clients", "sdk1.cjs"),
    "npm-client-2": JavaScriptClient("clients", "client2.cjs"),
    "mcp-remote": DrivenClient("clients", "remote.py", "mcp-remote/dist/proxy.js"),
    "inspector": DrivenClient(
        "clients",
        "inspector.py",
        "@modelcontextprotocol/inspector/clients/launcher/build/index.js",
    ),
}


def conformance_server(era: str = "both") -> list[str]:
    """Return the command line of the server for the conformance suite, of both eras or one."""
    return [*_conformance_module("client2", "server"), "--era", era]


def legacy_conformance_server() -> list[str]:
    """Return the command line of the conformance server that has only legacy revisions."""
    return _conformance_module("client1", "legacy")


def npm_conformance_server() -> list[str]:
    """Return the command line of the conformance server in JavaScript, of both eras."""
    modules = REAL / "conformance" / "node_modules"
    built(modules / "@modelcontextprotocol" / "server")
    return [node(), str(ROOT / "tests" / "conformance" / "server.mjs"), str(modules)]


def tasks_conformance_server() -> list[str]:
    """Return the command line of the conformance server with the tasks extension."""
    return [command("env"), f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.conformance.tasks"]


def _conformance_module(environment: str, module: str) -> list[str]:
    python = built(REAL / environment / "bin" / "python")
    return [command("env"), f"PYTHONPATH={ROOT}", python, "-m", f"tests.conformance.{module}"]


def demo() -> list[str]:
    """Return the command line of the bundled demo server."""
    return [sys.executable, "-m", "mcpbridge.demo"]


def time_server() -> list[str]:
    """Return the command line of the real time server."""
    return [built(REAL / "servers" / "bin" / "mcp-server-time"), "--local-timezone=UTC"]


def tasks_server() -> list[str]:
    """Return the command line of a server on FastMCP whose tool runs as a task."""
    return [built(REAL / "tasks" / "bin" / "python"), str(CLIENTS / "tasks_server.py")]


def tasks_client() -> list[str]:
    """Return the command line of a client on FastMCP that drives tasks, up to its arguments."""
    return [built(REAL / "tasks" / "bin" / "python"), str(CLIENTS / "tasks_client.py")]


def git_server(repository: Path) -> list[str]:
    """Return the command line of the real git server."""
    command("git")
    return [built(REAL / "servers" / "bin" / "mcp-server-git"), f"--repository={repository}"]


def everything_server() -> list[str]:
    """Return the command line of the real reference server."""
    return [node(), _script("server-everything")]


def filesystem_server(folder: Path) -> list[str]:
    """Return the command line of the real file system server."""
    return [node(), _script("server-filesystem"), str(folder)]


def apps_server() -> list[str]:
    """Return the command line of a legacy server with MCP Apps, for clients that declare them."""
    modules = REAL / "clients" / "node_modules"
    built(modules / "@modelcontextprotocol" / "ext-apps")
    return [node(), str(ROOT / "tests" / "real" / "apps.mjs"), str(modules)]


def _script(name: str) -> str:
    return built(MODULES / "@modelcontextprotocol" / name / "dist" / "index.js")


def matrix_script(environment: str, script: str) -> list[str]:
    """Return the command line of a script of the matrix, with the environment that has its SDK."""
    path = str(ROOT / "tests" / "matrix" / script)
    if not script.endswith(".cjs"):
        return [built(REAL / environment / "bin" / "python"), path]
    modules = built(REAL / environment / "node_modules")
    return [command("env"), f"NODE_PATH={modules}", node(), path]
