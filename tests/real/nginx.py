"""
Run a real nginx with a configuration of its own, on ports of its own.

It changes nothing of an nginx that is installed as a service, and needs no root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.real.parts import command

#: Seconds that nginx may take to stop; no assertion is about this time.
PATIENCE = 60.0
#: Everything that nginx writes is below its prefix, `-p`.  The log is stderr.
_MAIN = """
{user}
daemon off;
master_process on;
worker_processes 1;
pid nginx.pid;
error_log stderr info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{http}
}}
"""


def listening() -> socket.socket:
    """
    Return a socket that listens on a loopback port that is free.

    nginx takes it over, so that nobody else can take the port before.
    """
    return socket.create_server(("127.0.0.1", 0))


@dataclass(frozen=True)
class Nginx:
    """An nginx that runs; `folder` is its prefix."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> str:
        """Everything that it has printed."""
        return (self.folder / "log").read_text(errors="replace")


@contextlib.contextmanager
def running(folder: Path, http: str, sockets: Sequence[socket.socket]) -> Iterator[Nginx]:
    """
    Run nginx during the block, with `http` as the content of its block of that name.

    `sockets` are those of its `listen` directives, and closed here.  A client that
    connects before nginx is ready waits.
    """
    nginx = command("nginx")
    folder.mkdir()
    # A worker of another user could not read files in a folder that is the tests' own.
    user = "user root root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_MAIN.format(user=user, http=http))
    descriptors = [each.fileno() for each in sockets]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [nginx, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"],
            # How an nginx hands its listening sockets to the one that replaces it.
            env={**os.environ, "NGINX": "".join(f"{each};" for each in descriptors)},
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    for each in sockets:
        each.close()
    one = Nginx(process, folder)
    try:
        yield one
        assert process.poll() is None, one.log
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # Its workers, too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, one.log
