"""Confine real processes by every chain, and find out what this machine cannot apply."""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import SettingError, SettingErrors
from mcpbridge.stdio import confinement_check, confinement_trial
from mcpbridge.stdio.confinement import CPU_GRACE_SECONDS, Confinement, Limit
from mcpbridge.stdio.confinement_check import (
    NODE_ADDRESS_SPACE,
    confinement_errors,
    confinement_problems,
    own_capabilities,
)
from mcpbridge.stdio.confinement_trial import OUTPUT_BYTES, Trial, TrialFailed
from mcpbridge.stdio.exec_chain import (
    Chain,
    Compiled,
    PythonShim,
    UtilLinux,
    confine,
    find_chain,
    works,
)
from mcpbridge.stdio.procfs import tag_of
from tests.real.processes import eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is for Linux")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")

ROOT = Path(__file__).parents[3]
#: A user without an account.
SOMEBODY = 12345
TAG = 1 << 41
LIMITS = (
    Limit("open_files", resource.RLIMIT_NOFILE, 64, 64),
    Limit("file_size", resource.RLIMIT_FSIZE, 51200, 51200),
    Limit("cpu_seconds", resource.RLIMIT_CPU, 50, 50 + CPU_GRACE_SECONDS),
    Limit("core", resource.RLIMIT_CORE, 0, 0),
    Limit("address_space", resource.RLIMIT_AS, 1 << 30, 1 << 30),
)
AS_SOMEBODY = Confinement(SOMEBODY, SOMEBODY)
PATIENCE = 60
_CAPABILITIES = "-all,+setuid,+setgid,+dac_override"
#: Becomes another user with some privileges of root, as a service may be.
WITH_CAPABILITIES = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}"),
]

#: `launch.c` as setup.py compiles it where it can, and with a C library.
VARIANTS = {
    "without_libc": "-static -no-pie -nostdlib -ffreestanding -fno-stack-protector -DWITHOUT_LIBC",
    "with_libc": "",
}


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, str]]:
    """Each variant of the compiled launcher, without a warning; empty without a compiler."""
    compiler = shutil.which("cc")
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name, options in VARIANTS.items() if compiler else ():
            made[name] = os.path.join(folder, name)
            line = f"{compiler} -O2 -Wall -Wextra -Werror {options} -o {made[name]}"
            subprocess.run([*line.split(), str(ROOT / "mcpbridge/stdio/launch.c")], check=True)
        yield made


def util_linux() -> UtilLinux:
    """The chain of util-linux; its programs are everywhere."""
    env, setsid, prlimit, setpriv = (
        shutil.which(name) or name for name in ("env", "setsid", "prlimit", "setpriv")
    )
    return UtilLinux(env, setsid, prlimit, setpriv)


MakeChain = Callable[[dict[str, str]], Chain]
CHAINS: dict[str, MakeChain] = {
    "without_libc": lambda programs: Compiled(programs.get("without_libc", Compiled().path)),
    "with_libc": lambda programs: Compiled(programs.get("with_libc", Compiled().path)),
    "util_linux": lambda programs: util_linux(),
    "shim": lambda programs: PythonShim(),
}
every_chain = pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS.keys())


def test_util_linux_works_here() -> None:
    """So that the tests of this chain say something."""
    assert works(util_linux())


@as_root
@every_chain
def test_every_chain_applies_everything(programs: dict[str, str], make: MakeChain) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = Confinement(SOMEBODY, SOMEBODY + 1, 0o27, min(19, own + 2), LIMITS)
    script = (
        "grep -E '^(Uid|Gid|Groups|CapPrm|CapEff|CapAmb|Umask):' /proc/self/status | tr '\\t' ' ';"
        "ulimit -n; ulimit -Hn; ulimit -f; ulimit -t; ulimit -Ht; ulimit -c; ulimit -v; nice; pwd"
    )
    chain = confine(make(programs), wanted)
    line = chain.wrap(["/bin/sh", "-c", script], TAG, "/usr")
    shown = subprocess.check_output(line, text=True).splitlines()
    one, other = (" ".join([str(SOMEBODY + each)] * 4) for each in (0, 1))
    assert {each.rstrip() for each in shown[:7]} == {
        "Umask: 0027",
        f"Uid: {one}",
        f"Gid: {other}",
        "Groups:",
        *(f"{each}: {0:016x}" for each in ("CapPrm", "CapEff", "CapAmb")),
    }
    assert shown[7:] == [
        *("64", "64", "100", "50", str(50 + CPU_GRACE_SECONDS), "0", str(1 << 20)),
        *(str(wanted.niceness), "/usr"),
    ]


@as_root
def test_util_linux_applies_the_rest() -> None:
    """What needs no other chain."""
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 2)
    chain = confine(util_linux(), Confinement(None, SOMEBODY, None, niceness, LIMITS))
    assert isinstance(chain, UtilLinux)
    script = "id -g; id -G; ulimit -n; ulimit -f; ulimit -t; ulimit -c; ulimit -v; nice; pwd"
    shown = subprocess.check_output(chain.wrap(["/bin/sh", "-c", script], TAG, "/usr"), text=True)
    assert shown.split() == [
        *(str(SOMEBODY), str(SOMEBODY), "64", "100", "50", "0", str(1 << 20)),
        *(str(niceness), "/usr"),
    ]


@as_root
@every_chain
@pytest.mark.parametrize("wanted", [None, Confinement(niceness=19), AS_SOMEBODY])
def test_capabilities_of_the_bridge_are_not_passed_on(
    programs: dict[str, str], make: MakeChain, wanted: Confinement | None
) -> None:
    """Those that a bridge of another user than root was given, to change the user of others."""
    chain = make(programs) if wanted is None else confine(make(programs), wanted)
    script = "grep -E '^Cap(Prm|Eff|Amb):' /proc/self/status"
    line = [*WITH_CAPABILITIES, *chain.wrap(["/bin/sh", "-c", script], TAG, "/")]
    shown = subprocess.check_output(line, text=True).split()
    assert shown[1::2] == [f"{0:016x}"] * 3


@as_root
@every_chain
@pytest.mark.parametrize("become", [[], WITH_CAPABILITIES])
def test_pipes_can_be_opened_by_name(
    programs: dict[str, str], make: MakeChain, become: list[str]
) -> None:
    """As by programs that log to /dev/stderr; also if the bridge lacks CAP_CHOWN."""
    script = "cat /dev/stdin >/dev/stdout; echo log >/dev/stderr"
    chain = confine(make(programs), AS_SOMEBODY)
    assert isinstance(chain, Compiled | PythonShim)
    line = replace(chain, parent="PARENT").wrap(["/bin/sh", "-c", script], TAG, "/")
    # These pipes are made by the user who has the capabilities.
    shell = f"cat | {shlex.join(line).replace('PARENT', '$$')} 2>&1 | cat"
    shown = subprocess.run(
        [*become, "/bin/sh", "-c", shell], input=b"hello\n", stdout=subprocess.PIPE, check=True
    )
    assert shown.stdout == b"hello\nlog\n"


@as_root
@every_chain
def test_limit_on_descriptors_takes_precedence(programs: dict[str, str], make: MakeChain) -> None:
    """Over the soft limit with which the bridge was started."""
    chain = replace(make(programs), descriptors=128)  # type: ignore[type-var]
    line = confine(chain, Confinement(limits=LIMITS[:1])).wrap(
        ["/bin/sh", "-c", "ulimit -n"], 0, None
    )
    assert subprocess.check_output(line) == b"64\n"


@as_root
@every_chain
def test_confined_process_dies_with_its_parent(programs: dict[str, str], make: MakeChain) -> None:
    """The kernel clears the parent-death signal when the credentials change: it is set last."""
    chain = confine(make(programs), replace(AS_SOMEBODY, limits=LIMITS[:1]))
    program = (
        "import os, subprocess, sys;"
        "from mcpbridge.stdio.confinement import *;"
        "from mcpbridge.stdio.exec_chain import *;"
        f"p = subprocess.Popen({chain!r}.wrap(['/bin/sleep', '600'], 0, None));"
        "print(p.pid, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    child = os.pidfd_open(pid)
    try:
        assert eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", PATIENCE)
        assert os.stat(f"/proc/{pid}").st_uid == SOMEBODY
        parent.stdin.close()
        parent.wait()
        parent.stdout.close()
        assert select.select([child], [], [], PATIENCE)[0], "the backend outlived the bridge"
    finally:
        signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)


@as_root
@every_chain
def test_directory_is_entered_as_the_new_user(
    programs: dict[str, str], make: MakeChain, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    line = confine(make(programs), AS_SOMEBODY).wrap(["/bin/true"], 0, str(tmp_path))
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "ermission denied" in done.stderr


@as_root
@every_chain
def test_refused_step_is_no_silence(programs: dict[str, str], make: MakeChain) -> None:
    """The program does not start."""
    nr_open = int(Path("/proc/sys/fs/nr_open").read_text())
    limit = Limit("open_files", resource.RLIMIT_NOFILE, nr_open + 1, nr_open + 1)
    line = confine(make(programs), Confinement(limits=(limit,))).wrap(["/bin/echo", "x"], 0, None)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert re.match(r"prlimit: |l\d", done.stderr.replace(str(shutil.which("prlimit")), "prlimit"))


@pytest.mark.parametrize("name", ["without_libc", "with_libc"])
def test_launcher_refuses_what_it_does_not_know(programs: dict[str, str], name: str) -> None:
    chain = Compiled(programs.get(name, Compiled().path), steps=("x1",))
    done = subprocess.run(chain.wrap(["/bin/true"], 0, None), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (125, b"launch: unknown step\n")
    shim = PythonShim(steps=("x1",)).wrap(["/bin/true"], 0, None)
    done = subprocess.run(shim, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (125, b"x1: unknown step\n")


@pytest.mark.parametrize("chain", [Compiled(), PythonShim()])
def test_parent_that_is_dead_already(chain: Compiled | PythonShim) -> None:
    """The program does not start."""
    line = replace(chain, parent=str(os.getpid() + 1)).wrap(["/bin/echo", "x"], 0, None)
    done = subprocess.run(line, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (125, b"")


# Removing what another user has left, without privileges.


@as_root
def test_closed_directories_are_removed_by_their_owner() -> None:
    """A backend of the bridge's own user may make directories that nobody can read or change."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        os.chown(top, SOMEBODY, SOMEBODY)
        script = (
            'mkdir -p "$0/tree/closed/inner" "$0/tree/readonly/x" && cd "$0/tree" &&'
            "touch readonly/file closed/inner/file && ln -s /etc closed/link &&"
            "chmod 0 closed/inner closed && chmod 500 readonly && chmod 0 ."
        )
        line = confine(find_chain(), AS_SOMEBODY).wrap(["/bin/sh", "-c", script, name], 0, None)
        subprocess.run(line, check=True)
        tree = str(top / "tree")
        # By a process that has no privileges any more.
        program = (
            "import os, sys;"
            "from mcpbridge.stdio.remove_tree import identity, remove_tree;"
            f"os.setgroups([]); os.setresgid(*[{SOMEBODY}] * 3); os.setresuid(*[{SOMEBODY}] * 3);"
            "sys.exit(remove_tree(sys.argv[1], identity(sys.argv[1]), lambda: False) or None)"
        )
        subprocess.run([sys.executable, "-c", program, tree], check=True)
        assert list(top.iterdir()) == []


# The check.


def server(**settings: Any) -> ServerSettings:
    return ServerSettings(**{"name": "x", "command": "cat", **settings})


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@as_root
@every_chain
def test_settings_that_hold_have_no_problem(
    programs: dict[str, str], make: MakeChain, folder: Path
) -> None:
    """And nothing is left of the trial."""
    settings = server(
        user=SOMEBODY,
        group=SOMEBODY,
        umask="0077",
        nice=1,
        limits={"open_files": 64, "file_size": 1, "cpu_seconds": 5, "core": 0},
        private_tmp=True,
    )
    environment = {"TMPDIR": str(folder), "PATH": os.defpath}
    for each in (settings, replace(settings, umask=None)):
        assert confinement_errors(each, environment, lambda: make(programs)) == []
    assert list(folder.iterdir()) == []


def test_server_that_is_not_confined_is_not_tried() -> None:
    def chain() -> Chain:
        raise AssertionError

    assert confinement_errors(server(), {}, chain) == []


def problems(environment: dict[str, str] | None = None, **settings: Any) -> list[str]:
    """What is wrong, without the name of the server."""
    found = confinement_problems(server(**settings), environment or {"PATH": os.defpath})
    assert all(each.startswith("mcpServers.x.") for each in found)
    return [each.removeprefix("mcpServers.x.") for each in found]


@as_root
def test_program_and_directories_out_of_reach(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    program = tmp_path / "program"
    program.symlink_to("/bin/cat")
    as_somebody: dict[str, Any] = {"user": SOMEBODY, "group": SOMEBODY}
    [problem] = problems(command=str(program), **as_somebody)
    assert problem == (
        f"user: expected one that may execute {str(program)!r}; move the program, or change the"
        f" permissions of its directories, got user {SOMEBODY}"
    )
    [problem] = problems(cwd=str(tmp_path), **as_somebody)
    assert problem == (
        f"cwd: expected what can be applied here, but a trial failed ({tmp_path}: Permission"
        f' denied), got "{tmp_path}"'
    )
    [problem] = problems({"TMPDIR": str(tmp_path)}, private_tmp=True, **as_somebody)
    assert problem == (
        f"private_tmp: expected a TMPDIR that the backend's user can reach, got {str(tmp_path)!r}"
    )


def test_missing_folder_for_temporary_files(tmp_path: Path) -> None:
    [problem] = problems({"TMPDIR": str(tmp_path / "missing")}, private_tmp=True)
    assert problem.startswith("private_tmp: expected room for directories in TMPDIR or /tmp, got ")
    assert problem.endswith(f"No such file or directory in {tmp_path / 'missing'}")


@as_root
def test_directory_that_cannot_be_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing users is not enough."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    [problem] = problems({"TMPDIR": str(tmp_path)}, private_tmp=True, user=SOMEBODY, group=SOMEBODY)
    assert "CAP_CHOWN" in problem


def test_settings_that_contradict_others() -> None:
    variables = {"TMPDIR": "/x", "TEMP": "/y"}
    assert problems(private_tmp=True, env=variables) == [
        f"env.{name}: expected no value, because `private_tmp` sets this variable, got one"
        for name in variables
    ]


def test_container_confines_itself() -> None:
    """The settings would confine only the CLI of its engine."""
    found = problems(
        command="podman",
        args=("run", "-i", "x"),
        user="nobody",
        group="nogroup",
        umask="0077",
        nice=1,
        limits={"core": 0},
        private_tmp=True,
    )
    assert [each.partition(":")[0] for each in found] == [
        *("user", "group", "umask", "nice", "limits", "private_tmp"),
    ]
    assert "`--user UID:GID`" in found[0]
    assert "`--ulimit NAME=SOFT:HARD`" in found[4]


def test_limit_that_leaves_no_room() -> None:
    [problem] = problems(limits={"address_space": 1 << 20})
    assert problem.startswith("limits: expected what can be applied here, but a trial failed (/bin")


@pytest.fixture
def without_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement_check, "own_capabilities", lambda: 0)


@pytest.mark.usefixtures("without_capabilities")
def test_missing_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error names what the bridge lacks."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10, 100))
    [user] = problems(user=SOMEBODY, group=SOMEBODY)
    assert "without CAP_SETUID and CAP_SETGID and CAP_KILL, so that it could not start" in user
    assert user.startswith("user: expected none, because the bridge runs as user ")
    assert "AmbientCapabilities=" in user
    [group] = problems(group=SOMEBODY)
    assert group.startswith("group: expected none, because the bridge runs as user ")
    [files, seconds] = problems(limits={"open_files": 101, "cpu_seconds": 98})
    assert files.startswith("limits.open_files: expected at most 100, because the bridge's own")
    assert seconds.startswith(f"limits.cpu_seconds: expected at most {100 - CPU_GRACE_SECONDS},")
    [nice] = problems(nice=-20)
    assert nice.startswith("nice: expected at least ")
    assert "CAP_SYS_NICE" in nice


def test_own_capabilities(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapPrm:\t00ff\nCapEff:\t0000000000000021\n")
    assert own_capabilities(str(status)) == 0x21
    status.write_text("Name:\tx\n")
    assert own_capabilities(str(status)) == -1
    assert own_capabilities("/nonexistent") == -1


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert problems(umask="0077") == ["umask: expected no value, because it needs Linux, got one"]


NODE = "#!/bin/sh\nexec /bin/sh -c 'exit 134'\n"


@pytest.mark.parametrize("name", ["node", "npx"])
def test_space_in_which_node_does_not_start(tmp_path: Path, name: str) -> None:
    """It is tried below `NODE_ADDRESS_SPACE`, where each version has a least value of its own."""
    (tmp_path / "node").write_text(NODE)
    (tmp_path / "npx").write_text("#!/usr/bin/env node\n")
    for each in ("node", "npx"):
        (tmp_path / each).chmod(0o755)
    environment = {"PATH": str(tmp_path)}
    space = {"limits": {"address_space": NODE_ADDRESS_SPACE - 1}}
    [problem] = problems(environment, command=name, **space)
    assert problem.startswith("limits.address_space: expected none, or enough for Node.js, which ")
    (tmp_path / "node").write_text("#!/bin/sh\n")
    assert problems(environment, command=name, **space) == []
    (tmp_path / "node").write_text(NODE)
    enough = {"limits": {"address_space": NODE_ADDRESS_SPACE}}
    assert problems(environment, command=name, **enough) == []
    assert problems(environment, command="/bin/cat", **space) == []


def test_bridge_does_not_start_with_what_it_cannot_apply() -> None:
    """One that is embedded raises all errors at once."""
    from mcpbridge.bridge import Bridge
    from mcpbridge.testing import FakeReactor

    wrong = server(user="no-such-user")
    with pytest.raises(SettingError) as caught:
        Bridge(BridgeSettings(servers=(wrong,), listen=()), FakeReactor())
    assert caught.value.name == "mcpServers.x.user"
    other = server(name="y", base_uri="/y", group="no-such-group")
    with pytest.raises(SettingErrors) as both:
        Bridge(BridgeSettings(servers=(wrong, other), listen=()), FakeReactor())
    assert [each.partition(":")[0] for each in both.value.lines] == [
        "mcpServers.x.user",
        "mcpServers.y.group",
    ]


def test_other_settings_are_tried_before_they_hold() -> None:
    """With settings that this machine cannot apply, nothing changes."""
    from mcpbridge.bridge import Bridge
    from mcpbridge.testing import FakeReactor

    settings = BridgeSettings(servers=(server(umask="0077"),), listen=())
    bridge = Bridge(settings, FakeReactor())
    wrong = replace(settings, servers=(server(umask="0077", user="no-such-user"),))
    with pytest.raises(SettingError, match=r"mcpServers\.x\.user: expected the name of a user"):
        bridge.reload(wrong)
    assert bridge.settings == settings
    bridge.reload(replace(settings, servers=(server(umask="0027"),)))


# The trial, when the machine does not do what it should.


class Lying:
    """A chain that leaves out the steps."""

    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        return command


def test_trial_finds_what_a_chain_has_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that it does not die with its parent, in `DEATH_SECONDS`; then it is killed."""
    monkeypatch.setattr(confinement_trial, "DEATH_SECONDS", 0.1)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = Confinement(SOMEBODY, SOMEBODY, 0o123, own + 1, LIMITS)
    findings = Trial(Lying(), wanted).run()
    settings = [each.setting for each in findings]
    assert {*settings} >= {
        *("user", "group", "umask", "nice"),
        *(f"limits.{each.name}" for each in LIMITS),
    }
    assert findings[-1].expected.startswith("one whose processes die with the bridge")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement_trial, "TRIAL_SECONDS", 0.2)


class Slow:
    """A chain that never gets to the command."""

    closes_descriptors = False

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        return ["/bin/sleep", "600"]


class Talking(Slow):
    """A command that talks without end."""

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        return ["/bin/sh", "-c", f"echo pid $$; head -c {10 * OUTPUT_BYTES} /dev/zero; read x"]


@pytest.mark.usefixtures("impatient")
def test_trial_that_takes_too_long() -> None:
    """`TRIAL_SECONDS`: the start of the bridge does not wait for ever."""
    with pytest.raises(TrialFailed, match=r"it took more than 0\.2 s"):
        Trial(Slow(), AS_SOMEBODY).run()


def test_output_of_a_trial_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OUTPUT_BYTES` are read."""
    monkeypatch.setattr(confinement_trial, "DEATH_SECONDS", 0.1)
    assert Trial(Talking(), Confinement(umask=0)).run()


def test_command_line_of_a_trial_is_quoted(folder: Path) -> None:
    """A shell starts it: no name means anything to it."""
    strange = folder / "a b'$(touch x)\"@"
    strange.mkdir()
    shutil.copy(Compiled().path, strange / "launch")
    chain = confine(Compiled(str(strange / "launch")), Confinement(umask=0o77))
    assert Trial(chain, Confinement(umask=0o77), directory=str(strange)).run() == []
    assert shlex.quote(str(strange)) != str(strange)


@as_root
def test_tag_of_another_user_s_process_can_be_read() -> None:
    """By prlimit(2) or by its file: the bridge and the watchdog find processes so."""
    line = confine(find_chain(), AS_SOMEBODY).wrap(["/bin/cat"], TAG, None)
    with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
        assert eventually(lambda: tag_of(process.pid) == TAG, PATIENCE)
        assert process.stdin is not None
        process.stdin.close()
