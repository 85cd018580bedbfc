"""
Writes the stderr of running backends to the log or to a file, for the operator.

Knows lines, how many of them there may be, and files; must not know processes.
"""

from __future__ import annotations

from hashlib import sha256
from time import time
from urllib.parse import quote

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, formatTime
from twisted.python.logfile import LogFile

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    STDERR_FILE_BYTES,
    STDERR_FILES,
    STDERR_LOG_CHARS,
    STDERR_PROCESS_LINES,
    STDERR_SECONDS,
    STDERR_SERVER_LINES,
)

#: The bridge puts this before a line of stdout that is no message.
_STDOUT = b"stdout: "
#: A longer name of a server is cut in the name of its file.
_NAME_CHARS = 100


#: What backends write, so that its level can be set alone (`stderr=warn`).
_backends_log = Logger(namespace="mcpbridge.stderr")


class Allowance:
    """Limits the lines that are written in each `STDERR_SECONDS`, and counts the others."""

    __slots__ = ("_clock", "_ends", "_left", "_most", "omitted")

    def __init__(self, clock: IReactorTime, most: int) -> None:
        self._clock = clock
        self._most = self._left = most
        self._ends = float("-inf")
        self.omitted = 0

    def left(self) -> int:
        """Return how many lines may be written now."""
        now = self._clock.seconds()
        if now >= self._ends:
            self._ends = now + STDERR_SECONDS
            self._left = self._most
        return self._left

    def use(self, count: int) -> None:
        """Count so many lines as written."""
        self._left -= count


class ServerStderr:
    """Writes the stderr of all processes of one server where `stderr_log` says."""

    log = Logger()

    def __init__(self, settings: ServerSettings, clock: IReactorTime) -> None:
        self._clock = clock
        self._name = settings.name
        self._mode = settings.stderr_log
        self._directory = settings.stderr_dir or "."
        self._file: LogFile | None = None
        self._allowance = Allowance(clock, STDERR_SERVER_LINES)

    def process(self) -> ProcessStderr | None:
        """Return an object for the stderr of one more process; None where it goes nowhere."""
        if self._mode == "none":
            return None
        return ProcessStderr(self, self._clock, self._allowance)

    def where(self) -> str:
        """Return where it is to be found, in words; empty where it goes nowhere."""
        if self._mode == "none":
            return ""
        return "above" if self._mode == "log" else f"in {self._directory}/{self._file_name()}"

    def start(self) -> None:
        """Open the file; one that cannot be opened is reported."""
        if self._mode == "file" and self._file is None:
            try:
                self._file = self._open()
            except OSError as error:
                self._fall_back(error.strerror or str(error))

    def stop(self) -> None:
        """Close the file; `write` opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def write(self, label: str, lines: list[str]) -> None:
        """Write lines of a process, which must hold no control characters."""
        self.start()
        if self._file is not None:
            stamp = formatTime(time())
            text = "".join(f"{stamp} {label} {line}\n" for line in lines)
            try:
                self._file.write(text)
                if self._file.size > 2 * STDERR_FILE_BYTES:
                    # Where Twisted may not rename the file it goes on with it, without a bound.
                    raise OSError("it cannot be rotated")
                return
            except OSError as error:
                self._fall_back(error.strerror or str(error))
        session, space, note = label.partition(" ")
        for line in lines:
            _backends_log.info(
                "{server!r} {session}{note} {line}",
                server=self._name,
                session=session,
                note=space + note,
                line=line,
            )

    def _fall_back(self, why: str) -> None:
        """Write to the log from now on."""
        path = f"{self._directory}/{self._file_name()}"
        self._mode = "log"
        try:
            self.stop()
        except OSError:
            # The disk is full: what was buffered is lost.
            pass
        self.log.warn(
            "server {server!r}: cannot write {path}: {reason}; its stderr goes to the log until the"
            " bridge is started again (stderr_dir)",
            server=self._name,
            path=path,
            reason=why,
        )

    def _file_name(self) -> str:
        name = quote(self._name, safe="")
        if len(name) > _NAME_CHARS:
            digest = sha256(self._name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            name = f"{name[:_NAME_CHARS]}-{digest}"
        return f"{name}.stderr.log"

    def _open(self) -> LogFile:
        return LogFile(
            self._file_name(),
            self._directory,
            rotateLength=STDERR_FILE_BYTES,
            defaultMode=0o600,
            maxRotatedFiles=STDERR_FILES,
        )


class ProcessStderr:
    """Writes the stderr of one process, within its allowance and that of its server."""

    __slots__ = ("_omission_logged", "_own", "_server", "_shared")

    def __init__(self, server: ServerStderr, clock: IReactorTime, shared: Allowance) -> None:
        self._server = server
        self._own = Allowance(clock, STDERR_PROCESS_LINES)
        self._shared = shared
        #: True once a line says that lines are left out.
        self._omission_logged = False

    def received(self, label: str, lines: list[bytes]) -> None:
        """Write lines that came in one piece; those beyond the allowance are only counted."""
        left = min(self._own.left(), self._shared.left())
        taken = lines[: max(0, left)]
        shown: list[str] = []
        if taken:
            shown = self._omitted()
            self._own.use(len(taken))
            self._shared.use(len(taken))
            shown += [readable(line) for line in taken]
        if len(taken) < len(lines):
            self._own.omitted += len(lines) - len(taken)
            if not self._omission_logged:
                self._omission_logged = True
                shown.append(
                    f"wrote more than {STDERR_PROCESS_LINES} lines of stderr in"
                    f" {STDERR_SECONDS:g} s (all of the server: {STDERR_SERVER_LINES});"
                    " the rest is counted"
                )
        if shown:
            self._server.write(label, shown)

    def finish(self, label: str) -> None:
        """Write how many lines were left out: the process is gone."""
        shown = self._omitted()
        if shown:
            self._server.write(label, shown)

    def _omitted(self) -> list[str]:
        count, self._own.omitted = self._own.omitted, 0
        self._omission_logged = False
        return [f"{count} lines of stderr were left out"] if count else []


def readable(line: bytes) -> str:
    """Return a line as text for a log, with the name of the stream that it was written to."""
    if line.startswith(_STDOUT):
        return f"stdout: {printable(line[len(_STDOUT) :])}"
    return f"stderr: {printable(line)}"


def printable(line: bytes, most: int = STDERR_LOG_CHARS) -> str:
    """
    Return a line as text that terminals and log readers take for one line:
    what is not printable is escaped, and a line of more than `most`
    characters is cut.
    """
    # A character of UTF-8 has at most four bytes.
    text = line[: 4 * most].decode("utf-8", "backslashreplace").rstrip("\r")
    text = text.replace("\t", "    ")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > most:
        text = f"{text[:most]}... (cut; {len(line)} bytes)"
    return text
