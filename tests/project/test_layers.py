"""The architecture, as rules that a machine can read."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mcpbridge"

#: The ground: what every room with I/O may use.
GROUND = {"_version", "audit_log", "config", "counters", "errors", "guard", "interfaces", "jsonrpc"}
GROUND |= {"logs"}
GROUND |= {"pacer", "rate_limited_log", "response_budget", "timers", "twisted_internals"}
GROUND |= {"loop_lag", "pids", "process_usage", "shared_work"}
#: What the rooms may import from, besides themselves and what stands below in
#: this table.  A module outside the packages is a room of its own.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "interfaces": set(),
    "_version": set(),
    "guard": set(),
    "counters": set(),
    "signals": {"timers", "twisted_internals"},
    "systemd": {"timers"},
    "timers": set(),
    "trust": set(),
    "loop_lag": {"timers"},
    "shared_work": set(),
    "process_usage": {"shared_work"},
    "pacer": {"guard"},
    "pids": set(),
    "twisted_internals": {"pids"},
    "config": {"errors"},
    "logs": {"config", "twisted_internals"},
    "extensions": {"config", "errors"},
    "memory": {"config", "timers"},
    "rate_limited_log": {"config"},
    "response_budget": {"config", "rate_limited_log", "timers"},
    "audit_log": {"config", "guard", "rate_limited_log", "timers"},
    "jsonrpc": {"errors"},
    "sliced_work": {"config", "errors", "jsonrpc"},
    "mcp": {"_version", "errors", "jsonrpc"},
    "translation": {"errors", "jsonrpc", "mcp"},
    "tracing": GROUND | {"mcp"},
    "auth": GROUND | {"mcp", "trust"},
    "stdio": GROUND,
    "remote": GROUND | {"mcp", "trust"},
    "processes": GROUND | {"auth", "mcp", "translation", "tracing"},
    "session": GROUND | {"mcp", "translation", "processes", "tracing"},
    "stateless": GROUND | {"auth", "mcp", "translation", "processes", "tracing"},
    "generation": GROUND | {"processes", "session", "stateless", "tracing"},
    "server": GROUND
    | {"auth", "tracing", "generation", "sliced_work", "mcp", "processes", "session", "stateless"},
    "limits": GROUND | {"processes"},
    "session_report": {"processes", "server"},
    "drain": GROUND | {"processes", "server"},
    "health": GROUND | {"processes", "server"},
    "web": GROUND
    | {"auth", "health", "mcp", "processes", "session", "stateless", "server", "tracing"},
    "admin": GROUND | {"auth", "health", "processes", "server", "sliced_work", "stateless", "web"},
    "bridge": GROUND
    | {"auth", "extensions", "generation", "limits", "memory", "sliced_work", "stdio", "remote"}
    | {"health", "processes", "session", "server", "session_report", "web"}
    | {"admin", "drain", "tracing"},
    "check": GROUND | {"auth", "extensions", "remote", "stdio"},
    "tap": {
        "_version",
        "bridge",
        "check",
        "config",
        "errors",
        "logs",
        "memory",
        "signals",
        "systemd",
        "twisted_internals",
    }
    | {"web"},
    "token_command": {"auth"},
    "check_command": {"tap"},
    "schema_command": {"config"},
    "admin_client": {"admin", "config", "errors", "stdio"},
    "status_text": {"config"},
    "status_command": {"admin_client", "config", "status_text"},
    "control_commands": {"admin_client", "config"},
    "script": {"check_command", "control_commands", "schema_command", "status_command"}
    | {"token_command"},
    "demo": set(),
    "testing": {"errors", "interfaces"},
    "__init__": {"_version", "bridge", "config", "twisted_internals"},
}
#: What the sans-IO part must do without, and the interfaces and errors too.
WITH_IO = {"twisted", "klein", "treq", "socket", "asyncio", "subprocess", "threading", "os"}


class Module:
    """A module of the package: its syntax, and what it imports where."""

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.path = path
        self.room = parts[0]
        self.name = ".".join(("mcpbridge", *parts)).removesuffix(".__init__")
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    def imports(self, *, at_import: bool = False) -> Iterator[str]:
        """The full names of what is imported; with `at_import` no lazy ones."""
        nodes = list(_run_at_import(self.tree)) if at_import else list(ast.walk(self.tree))
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name} imports relatively"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    @cache  # noqa: B019  (the modules live as long as the tests)
    def ours(self, *, at_import: bool = False) -> frozenset[Module]:
        """The modules of the package that it imports."""
        found = set()
        for name in self.imports(at_import=at_import):
            if name.split(".")[0] == "mcpbridge":
                found.add(MODULES.get(name) or MODULES[name.rpartition(".")[0]])
        return frozenset(found - {self})


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from _run_at_import(node)


MODULES = {module.name: module for module in map(Module, sorted(PACKAGE.rglob("*.py")))}

each_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())


@each_module
def test_arrows_point_downwards(module: Module) -> None:
    allowed = ALLOWED[module.room] | {module.room}
    wrong = [other.name for other in module.ours() if other.room not in allowed]
    assert not wrong, f"{module.name} must not import {wrong}"


@each_module
def test_a_module_says_what_it_is(module: Module) -> None:
    assert ast.get_docstring(module.tree)


def test_there_is_no_cycle() -> None:
    TopologicalSorter({m.name: {o.name for o in m.ours()} for m in MODULES.values()}).prepare()


@pytest.mark.parametrize(
    "room", ["jsonrpc", "mcp", "translation", "config", "errors", "interfaces"]
)
def test_no_reactor_below(room: str) -> None:
    """These rooms are sans-IO; settings, errors and interfaces are plain too."""
    for module in MODULES.values():
        if module.room == room:
            banned = WITH_IO - ({"os"} if room == "config" else set())
            assert not {name.split(".")[0] for name in module.imports()} & banned, module.name


def test_klein_is_in_one_module_that_is_imported_lazily() -> None:
    with_klein = [
        module.name
        for module in MODULES.values()
        if any(name.split(".")[0] == "klein" for name in module.imports())
    ]
    assert with_klein == ["mcpbridge.web.routes"]
    routes = MODULES["mcpbridge.web.routes"]
    tree = MODULES["mcpbridge.web.tree"]
    users = [module for module in MODULES.values() if routes in module.ours()]
    assert users == [tree]
    users = [module for module in MODULES.values() if tree in module.ours()]
    assert [module.name for module in users] == ["mcpbridge.bridge"]
    assert tree not in users[0].ours(at_import=True)


@each_module
def test_the_reactor_is_never_imported_with_a_module(module: Module) -> None:
    assert "twisted.internet.reactor" not in set(module.imports(at_import=True))


def test_importing_installs_no_reactor() -> None:
    """An application that embeds the bridge chooses its own reactor."""
    lazy = {"mcpbridge.web.routes", "mcpbridge.web.tree", "mcpbridge.stdio.exec_shim"}
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    for unwanted in ('twisted.internet.reactor', 'klein'):\n"
        "        assert unwanted not in sys.modules, (name, unwanted)\n"
    )
    command = [sys.executable, "-c", program, *sorted(MODULES.keys() - lazy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a.b"}),
        ("if x:\n    import a", {"a"}),
        ("class A:\n    import a", {"a"}),
        ("try:\n    import a\nexcept E:\n    import b", {"a", "b"}),
        ("def f():\n    import a", set()),
        ("class A:\n    async def f(self):\n        import a", set()),
    ],
)
def test_what_runs_at_import_is_seen(text: str, names: set[str]) -> None:
    """The walker itself: where it were blind, the rules above would hold by chance."""
    module = MODULES["mcpbridge.errors"]
    try:
        original, module.tree = module.tree, ast.parse(text)
        assert set(module.imports(at_import=True)) == names
    finally:
        module.tree = original
