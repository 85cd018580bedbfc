"""
What the matrix consists of: clients, backends, operations, and the outcome of each.

Knows what is to be done and what may be absent; must not know how a bridge or
a client is started.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PINS = Path(__file__).resolve().parent.parent / "real"


class Sdk(NamedTuple):
    """An official SDK with a client: the package and where it is built and pinned."""

    package: str
    environment: str
    pins: str
    script: str

    @property
    def version(self) -> str:
        """The version that is pinned."""
        text = (PINS / self.pins).read_text(encoding="utf-8")
        if self.pins.endswith(".json"):
            pinned: str = json.loads(text)["dependencies"][self.package]
            return pinned
        lines = (line.partition("==") for line in text.splitlines())
        [version] = [version.strip() for name, _, version in lines if name == self.package]
        return version


SDKS = {
    "python-1": Sdk("mcp", "client1", "client1.txt", "client1.py"),
    "python-2": Sdk("mcp", "client2", "client2.txt", "client2.py"),
    "npm-1": Sdk("@modelcontextprotocol/sdk", "clients", "clients.json", "client1.cjs"),
    "npm-2": Sdk("@modelcontextprotocol/client", "clients", "clients.json", "client2.cjs"),
}
#: Those that know 2026-07-28, and to ask what is newest.
SECOND = ("python-2", "npm-2")


class Row(NamedTuple):
    """A kind of client: what it speaks, where it connects, which SDKs can be made to."""

    title: str
    revision: str
    endpoint: str = "mcp"
    sdks: tuple[str, ...] = tuple(SDKS)


ROWS = {
    "sse": Row("HTTP+SSE, 2024-11-05", "2024-11-05", "sse"),
    "2025-03-26": Row("Streamable HTTP, 2025-03-26", "2025-03-26"),
    "2025-06-18": Row("Streamable HTTP, 2025-06-18", "2025-06-18"),
    "2025-11-25": Row("Streamable HTTP, 2025-11-25", "2025-11-25"),
    "2026-07-28": Row("2026-07-28, pinned", "2026-07-28", sdks=SECOND),
    "auto": Row("newest revision (`auto`)", "auto", sdks=SECOND),
}
#: What a client that takes the newest agrees on with the bridge.
NEWEST = "2026-07-28"
NO_REVISION = "the SDK knows no revision after 2025-11-25"

BACKENDS = {
    "legacy": "A legacy server (Python SDK 1.x: up to 2025-11-25)",
    "dual": "A server of both eras (Python SDK 2.x)",
    "modern": "A modern server (Python SDK 2.x, 2026-07-28 only)",
    "everything": "`server-everything` (npm SDK 1.x: up to 2025-11-25)",
    "time": "`mcp-server-time` (Python SDK 2.x: both eras)",
}
OPERATIONS = {
    "list": "list",
    "call": "call",
    "progress": "progress",
    "cancel": "cancel",
    "elicitation": "elicitation",
    "subscription": "subscription",
}

# What one side may lack.
NO_ELICITATION = "the revision has no elicitation"
NO_SUBSCRIPTIONS = "the server has no resource subscriptions"
NO_PROGRESS = "the server has no tool that reports progress"
NO_CANCELLATION = "the server has no tool that takes long enough to be cancelled"
NO_QUESTIONS = "the server has no tool that asks the user"


def plan(backend: str, mark: str) -> dict[str, Any]:
    """What a client is to do with a backend, by operation; `mark` is for this visit alone."""
    said = {"message": f"grüße of {mark}"}
    answer = {"name": "Ada"}
    match backend:
        case "time":
            now = {"tool": "get_current_time", "arguments": {"timezone": "UTC"}}
            return {
                "list": {"tool": "convert_time"},
                "call": {**now, "says": '"timezone": "UTC"'},
                "progress": NO_PROGRESS,
                "cancel": NO_CANCELLATION,
                "elicitation": NO_QUESTIONS,
                "subscription": {**now, "uri": "time://now"},
            }
        case "everything":
            slow = "trigger-long-running-operation"
            # that it is cancelled is seen at the client alone: this tool goes on all the same
            for_long = {"duration": 2, "steps": 4}
            return {
                "list": {"tool": slow},
                "call": {"tool": "echo", "arguments": said, "says": said["message"]},
                "progress": {"tool": slow, "arguments": {"duration": 0.2, "steps": 4}, "steps": 4},
                "cancel": {"tool": slow, "arguments": for_long, "leaves_mark": False},
                "elicitation": {
                    "tool": "trigger-elicitation-request",
                    "arguments": {},
                    "answer": answer,
                    "says": "Name: Ada",
                },
                "subscription": {
                    "uri": "demo://resource/dynamic/text/1",
                    "tool": "toggle-subscriber-updates",
                    "arguments": {},
                },
            }
    return {
        "list": {"tool": "touch"},
        "call": {"tool": "echo", "arguments": said, "says": said["message"]},
        "progress": {"tool": "count", "arguments": {"steps": 3}, "steps": 3},
        "cancel": {"tool": "slow", "arguments": {"mark": mark}, "leaves_mark": True},
        "elicitation": {"tool": "ask", "arguments": {}, "answer": answer, "says": "accept: Ada"},
        "subscription": {"uri": "matrix://thing", "tool": "touch", "arguments": {}},
    }


@dataclass(frozen=True)
class Outcome:
    """What came of one operation of one client with one backend; `why` where it failed."""

    row: str
    sdk: str
    backend: str
    op: str
    ok: bool = False
    absent: str = ""
    why: str = ""
    version: str = ""

    def __str__(self) -> str:
        where = f"{self.row}, {self.sdk}, {self.backend}, {self.op}"
        return f"{where}: {'ok' if self.ok else self.absent or self.why}"
