"""
Parse a `docker run` command line, and add labels to it.

`docker`, `podman` and `nerdctl` start a container outside the process tree
of their CLI, so ending that tree does not end the container.  This module
finds out if a backend's command line starts a container, with which engine,
and with which of the options that matter here.  It does no I/O: `containers`
runs the engine's commands.

The three CLIs parse options with the pflag library: `--name value`,
`--name=value`, `--flag`, `--flag=false`, `-n value`, `-nvalue`, `-n=value`,
and combined short flags (`-it`).  A `--` ends the options, and so does the
first argument that is not an option, here IMAGE.  A flag takes no value from
the next argument, every other option does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

#: The labels of all containers of one bridge, and of the container of one session.
BRIDGE_LABEL = "mcpbridge.bridge"
SESSION_LABEL = "mcpbridge.session"
#: The label of a container that was started with `--rm`: its anonymous volumes are removed, too.
VOLUMES_LABEL = "mcpbridge.remove-volumes"

_ENGINES = {"docker": "docker", "podman": "podman", "podman-remote": "podman", "nerdctl": "nerdctl"}
#: Options of the engine itself that are flags.
_GLOBAL_FLAGS = {
    "docker": {"-D", "--debug", "--tls", "--tlsverify", "-v", "--version", "--help"},
    "podman": {
        *("-r", "--remote", "--noout", "--syslog", "--transient-store"),
        *("-v", "--version", "-h", "--help"),
    },
    "nerdctl": {
        *("--debug", "--debug-full", "--experimental", "--insecure-registry"),
        *("--kube-hide-dupe", "-v", "--version", "-h", "--help"),
    },
}
#: Short options of the engine itself that take a value, and docker's long ones; the long ones
#: of the other engines are below.
_GLOBAL_VALUES = {
    "docker": {
        *("-c", "--context", "-H", "--host", "-l", "--log-level", "--config"),
        *("--tlscacert", "--tlscert", "--tlskey"),
    },
    "podman": {"-c"},
    "nerdctl": {"-a", "-H", "-n"},
}
#: Options of the engine itself that podman and nerdctl also accept after `run`.  They select
#: the engine, so every later command needs them.
_GLOBAL_BEHIND_RUN = {
    "docker": set[str](),
    "podman": {
        *("--cgroup-manager", "--config", "--conmon", "--connection", "--events-backend"),
        *("--hooks-dir", "--identity", "--imagestore", "--log-level", "--module", "--namespace"),
        *("--network-cmd-path", "--network-config-dir", "--noout", "--out", "--remote", "--root"),
        *("--runroot", "--runtime", "--runtime-flag", "--ssh", "--storage-driver", "--syslog"),
        *("--tls-ca", "--tls-cert", "--tls-key", "--tmpdir", "--transient-store", "--url"),
        "--volumepath",
    },
    "nerdctl": {
        *("--address", "--host", "--namespace", "--snapshotter", "--storage-driver"),
        *("--cgroup-manager", "--cni-netconfpath", "--cni-path", "--data-root", "--debug"),
        *("--debug-full", "--experimental", "--hosts-dir", "--insecure-registry"),
    },
}
#: The options of `run`, of all engines, that are flags; all others take a value.
_RUN_FLAGS = {
    *("-d", "--detach", "-i", "--interactive", "-t", "--tty", "-P", "--publish-all"),
    *("-q", "--quiet", "--rm", "--init", "--help", "--privileged", "--read-only"),
    *("--disable-content-trust", "--no-healthcheck", "--oom-kill-disable", "--sig-proxy"),
    "--use-api-socket",
    # podman
    *("--env-host", "--http-proxy", "--no-hostname", "--no-hosts", "--passwd", "--replace"),
    *("--read-only-tmpfs", "--rmi", "--rootfs", "--tls-verify", "--unsetenv-all"),
}
_LONG = {"-i": "--interactive", "-t": "--tty", "-d": "--detach"}
#: The values that are true for Go's `strconv.ParseBool`.
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerCommand:
    """A command line that starts a container: `ENGINE [option ...] run [option ...] IMAGE ...`."""

    #: `docker`, `podman` or `nerdctl`.
    engine: str
    #: The engine as it was written, with its own options.
    prefix: tuple[str, ...]
    #: The arguments up to `run`, and those after it.
    head: tuple[str, ...]
    tail: tuple[str, ...]
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    remove: bool = False
    replace: bool = False
    cidfile: str | None = None
    name: str | None = None
    #: The variables that its options set to a value (`-e NAME=VALUE`).
    assigned: frozenset[str] = frozenset()

    def engine_line(self, program: str) -> list[str]:
        """Return the engine with its own options, to which a command such as `ps` is added."""
        return [program, *self.prefix[1:]]

    def run_line(
        self,
        program: str,
        labels: Mapping[str, str],
        cidfile: str | None,
        *,
        init: bool = False,
        variables: Iterable[str] = (),
    ) -> list[str]:
        """
        Return the command line to run, with the options that the bridge adds.
        The container gets those of the CLI's own variables that are named.

        They come right after `run`, where they are options whatever follows;
        of an option that is repeated the last one counts, so the user's own wins.
        """
        added = [f"--label={name}={value}" for name, value in labels.items()]
        added += [f"--env={name}" for name in variables]
        if cidfile is not None and self.cidfile is None:
            added.append(f"--cidfile={cidfile}")
        if init:
            added.append("--init")
        return [program, *self.head[1:], *added, *self.tail]

    def warning(self) -> str | None:
        """Return one line about options that do not suit a backend, or None."""
        found = list(self._problems())
        return f"`{self.engine} run`: {'; '.join(found)}" if found else None

    def _problems(self) -> Iterator[str]:
        if self.detach:
            yield "`-d` detaches the container from the bridge; remove it from args"
        if self.tty:
            yield "`-t` turns its pipes, which carry messages, into a terminal; remove it from args"
        if not self.interactive and not self.detach:
            yield "without `-i` its stdin is closed; add it to args"
        if self.name is not None and self.replace:
            yield (
                f"`--replace` with `--name {self.name}` lets each session end the one before;"
                " remove both from args"
            )
        elif self.name is not None:
            yield (
                f"only one container can have the name {self.name!r}, so a second session cannot"
                " start while the first runs; remove `--name` from args"
            )
        if self.cidfile is not None:
            yield (
                f"`--cidfile {self.cidfile}` must name a new file, so only one session can start;"
                " remove it from args"
            )


def parse_container_command(command: str, arguments: Sequence[str]) -> ContainerCommand | None:
    """
    Parse a backend's command line; return None if it starts no container.

    Only the engine itself is recognised, by the name of its program: not
    behind a shell, `env` or `sudo`, and not with `compose`, `exec` or `start`.
    """
    engine = _ENGINES.get(os.path.basename(command))
    if engine is None:
        return None
    flags = _GLOBAL_FLAGS[engine]
    values = (_GLOBAL_VALUES[engine] | _GLOBAL_BEHIND_RUN[engine]) - flags
    rest = _Options(arguments, flags, values, ends=("run", "container")).skip()
    before = list(arguments[: len(arguments) - len(rest)])
    words = rest[:2] if rest[:1] == ["container"] else rest[:1]
    if words[-1:] != ["run"]:
        return None
    tail = rest[len(words) :]
    also, found, assigned = _read_run_options(engine, tail)
    return ContainerCommand(
        engine=engine,
        prefix=(command, *before, *also),
        head=(command, *before, *words),
        tail=tuple(tail),
        interactive=found.get("--interactive") in _TRUE,
        tty=found.get("--tty") in _TRUE,
        detach=found.get("--detach") in _TRUE,
        remove=found.get("--rm") in _TRUE,
        replace=found.get("--replace") in _TRUE,
        cidfile=found.get("--cidfile") or None,
        name=found.get("--name") or None,
        assigned=frozenset(assigned),
    )


def _read_run_options(
    engine: str, tail: Sequence[str]
) -> tuple[list[str], dict[str, str], set[str]]:
    """
    Return the engine's own options among those of `run`, the last value of the others,
    and the variables that are set to a value.
    """
    own = _GLOBAL_BEHIND_RUN[engine]
    flags = _RUN_FLAGS | {each for each in _GLOBAL_FLAGS[engine] & own if each.startswith("--")}
    also: list[str] = []
    found: dict[str, str] = {}
    assigned: set[str] = set()
    for name, value in _Options(tail, flags):
        if name in own:
            also.append(f"{name}={value}")
        elif name in ("-e", "--env") and "=" in value:
            assigned.add(value.partition("=")[0])
        else:
            found[_LONG.get(name, name)] = value
    return also, found, assigned


class _Options:
    """
    Iterates over options as (name, value), with the value `true` for a flag;
    `rest` is what follows them.

    `flags` take no value from the next argument, `values` do.  An option that
    is in neither takes the next argument unless that is one of `ends`: newer
    engines have options that this module does not know.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        flags: AbstractSet[str],
        values: AbstractSet[str] = frozenset(),
        ends: Sequence[str] = (),
    ) -> None:
        self.rest = list(arguments)
        self._flags = flags
        self._values = values
        self._ends = ends

    def skip(self) -> list[str]:
        """Skip all options; return the arguments that follow them."""
        for _ in self:
            pass
        return self.rest

    def __iter__(self) -> Iterator[tuple[str, str]]:
        while self.rest and self.rest[0].startswith("-") and self.rest[0] != "-":
            argument = self.rest.pop(0)
            if argument == "--":
                return
            if argument.startswith("--"):
                yield self._long(argument)
            else:
                yield from self._short(argument[1:])

    def _long(self, argument: str) -> tuple[str, str]:
        name, equals, value = argument.partition("=")
        if equals:
            return name, value
        return name, "true" if name in self._flags else self._next(name)

    def _short(self, letters: str) -> Iterator[tuple[str, str]]:
        """Parse `-i`, `-it`, `-i=true`, `-eNAME`, `-e NAME` or `-ite NAME`."""
        while letters:
            name, letters = f"-{letters[0]}", letters[1:]
            # In pflag, an `=` with nothing behind it is a letter of its own.
            if letters.startswith("=") and len(letters) > 1:
                yield name, letters[1:]
                return
            if name in self._flags:
                yield name, "true"
            else:
                yield name, letters or self._next(name)
                return

    def _next(self, name: str) -> str:
        if not self.rest or (name not in self._values and self.rest[0] in self._ends):
            return ""
        return self.rest.pop(0)
