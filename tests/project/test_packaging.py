"""
Build the distributions as a release does, and install them as a user does.

The metadata, the contents and the tags are those of the files that would be
published.  Everything is built from copies of the tree.
"""

import importlib.metadata
import os
import platform
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.real.parts import ROOT, command, need

# In one worker, so that what the fixtures build is built once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

#: Variables of this environment that would change a build or an install.
BUILD_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MCPBRIDGE_PURE", "CC")
LINUX = sys.platform.startswith("linux")
LAUNCHER = "mcpbridge/stdio/launch"
PLUGIN = "twisted/plugins/mcpbridge_plugin.py"
#: What a fresh checkout does not have: environments, and what is built or cached.
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "env", "venv", ".real", "build", "dist", "*.egg-info", Path(LAUNCHER).name),
    *("__pycache__", ".*_cache", ".hypothesis", ".coverage*", "htmlcov", ".build", ".peers"),
    *("dropin.*", "twistd.*", "_trial_temp*"),
)
#: Numbers of the ELF format: types of segments, and machines.
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS = 1, 2, 3, 7
X86_64, AARCH64, RISCV = 62, 183, 243
#: Files that setuptools adds to a source distribution.
GENERATED = {"PKG-INFO", "setup.cfg"}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command without the variables of `BUILD_VARIABLES`; return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name not in BUILD_VARIABLES}
    done = subprocess.run(
        command, cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def environment(folder: Path) -> Path:
    """Make an empty virtual environment, without a pip of its own; return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path, cwd: Path) -> None:
    """Install into an environment; what is imported there is compiled then."""
    need(find_spec("pip"), f"{sys.executable} has no pip")
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python)
    run(sys.executable, *pip, "install", "--no-compile", *what, cwd=cwd)


def files(folder: Path) -> set[str]:
    """Return the paths of all files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Wheel:
    """A wheel that was built."""

    path: Path

    @property
    def tag(self) -> str:
        """Return the last three parts of its name."""
        return "-".join(self.path.stem.split("-")[-3:])

    @property
    def names(self) -> set[str]:
        """Return the files that it installs, without its metadata."""
        with zipfile.ZipFile(self.path) as archive:
            return {name for name in archive.namelist() if ".dist-info/" not in name}

    def read(self, name: str) -> bytes:
        """Return the content of a file; one of the metadata begins with `.dist-info/`."""
        prefix = "mcpbridge-" + importlib.metadata.version("mcpbridge")
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(prefix + name if name.startswith(".dist-info/") else name)


@dataclass(frozen=True)
class Builder:
    """Builds wheels of one source tree, with the setuptools of an environment of its own."""

    python: Path
    source: Path

    def wheel(self, into: Path, **env: str) -> Wheel:
        """Build a wheel into a new folder; `env` is added to the environment."""
        # What a front end such as pip calls (PEP 517); most of its own time is saved.
        hook = f"from setuptools.build_meta import build_wheel; build_wheel({str(into)!r})"
        into.mkdir(exist_ok=True)
        run(self.python, "-c", hook, cwd=self.source, **env)
        [path] = into.glob("*.whl")
        return Wheel(path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tree as it is now, so that building leaves nothing in it."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution in an isolated environment, from a tree that was worked in."""
    folder = tmp_path_factory.mktemp("sdist")
    used = folder / "used"
    shutil.copytree(checkout, used)
    for litter in (LAUNCHER, "tests/__pycache__/x.pyc", "benchmarks/.build/x", "dist/x.whl"):
        path = used / litter
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run(sys.executable, "-m", "build", "--sdist", f"--outdir={folder}", used, cwd=folder)
    [built] = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def builder(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Unpack the source distribution, which has no history and no Git, to build from it."""
    folder = tmp_path_factory.mktemp("builder")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    python = environment(folder / "venv")
    install(python, "setuptools>=77.0.3", cwd=folder)
    return Builder(python, source)


@pytest.fixture(scope="module")
def platform_wheel(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """Build the wheel that holds the launcher, with this machine's C compiler."""
    machine = platform.machine()
    need(LINUX and machine in ("x86_64", "aarch64"), f"no launcher: {sys.platform} on {machine}")
    command("cc")
    return builder.wheel(tmp_path_factory.mktemp("platform"))


@pytest.fixture(scope="module")
def pure_wheel(
    builder: Builder, platform_wheel: Wheel, tmp_path_factory: pytest.TempPathFactory
) -> Wheel:
    """Build the pure wheel in a tree where the other one was built before."""
    return builder.wheel(tmp_path_factory.mktemp("pure"), MCPBRIDGE_PURE="1")


def test_the_sdist_holds_the_files_of_the_repository(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        paths = [member.name.partition("/")[2] for member in archive if member.isfile()]
    held = {path for path in paths if not path.startswith("mcpbridge.egg-info/")}
    assert held - GENERATED == files(checkout)
    assert {"LICENSE", f"{LAUNCHER}.c", "mcpbridge/py.typed", PLUGIN} <= held


def test_the_tags_name_this_machine_or_any(platform_wheel: Wheel, pure_wheel: Wheel) -> None:
    system = "musllinux_1_1" if platform.libc_ver()[0] != "glibc" else "manylinux_2_17"
    assert platform_wheel.tag == f"py3-none-{system}_{platform.machine()}"
    assert pure_wheel.tag == "py3-none-any"
    assert b"\nRoot-Is-Purelib: false\n" in platform_wheel.read(".dist-info/WHEEL")
    assert b"\nRoot-Is-Purelib: true\n" in pure_wheel.read(".dist-info/WHEEL")


def test_the_wheels_hold_the_package_and_one_plugin(
    checkout: Path, platform_wheel: Wheel, pure_wheel: Wheel
) -> None:
    modules = {str(path.relative_to(checkout)) for path in checkout.glob("mcpbridge/**/*.py")}
    static = {
        str(path.relative_to(checkout))
        for path in checkout.glob("mcpbridge/admin/static/**/*.*")
        if path.is_file()
    }
    assert static
    everywhere = modules | static | {"mcpbridge/py.typed", f"{LAUNCHER}.c", PLUGIN}
    assert pure_wheel.names == everywhere
    assert platform_wheel.names == everywhere | {LAUNCHER}


def test_the_wheels_describe_the_package(platform_wheel: Wheel, pure_wheel: Wheel) -> None:
    metadata = pure_wheel.read(".dist-info/METADATA")
    assert platform_wheel.read(".dist-info/METADATA") == metadata
    headers, _, description = metadata.decode().partition("\n\n")
    lines = headers.splitlines()
    assert "Requires-Python: >=3.11" in lines
    assert "License-Expression: MIT" in lines
    assert "Description-Content-Type: text/markdown" in lines
    for minor in range(11, 15):
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in lines
    for label in ("Homepage", "Documentation", "Source", "Changelog", "Issues"):
        assert any(line.startswith(f"Project-URL: {label}, https://") for line in lines), label
    assert "](https://" in description
    assert "](docs/" not in description
    assert pure_wheel.read(".dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_launcher_in_the_wheel_is_static_and_runs(
    platform_wheel: Wheel, tmp_path: Path
) -> None:
    with zipfile.ZipFile(platform_wheel.path) as archive:
        mode = archive.getinfo(LAUNCHER).external_attr >> 16
    assert stat.S_IMODE(mode) == 0o755
    image = platform_wheel.read(LAUNCHER)
    [table] = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    types = {struct.unpack_from("<I", image, table + size * i)[0] for i in range(count)}
    assert PT_LOAD in types
    assert not types & {PT_DYNAMIC, PT_INTERP}
    assert PT_TLS not in types, "it starts several times as fast without a C library"
    launcher = tmp_path / "launch"
    launcher.write_bytes(image)
    launcher.chmod(0o755)
    start = (launcher, "0", str(os.getpid()), str(tmp_path), "0", "--", "/bin/sh", "-c", "pwd -P")
    assert run(*start, cwd=ROOT).strip() == str(tmp_path.resolve())


def elf(machine: int, *segments: int, bits: int = 64) -> bytes:
    """Return the headers of a program for a machine, with segments of these types."""
    identity = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0
    )
    return identity + header + b"".join(struct.pack("<I52x", each) for each in segments)


@pytest.mark.parametrize(
    ("program", "tag"),
    [
        pytest.param(elf(X86_64, PT_LOAD), "linux_*_x86_64", id="static-x86_64"),
        pytest.param(elf(AARCH64, PT_LOAD), "linux_*_aarch64", id="static-aarch64"),
        pytest.param(elf(RISCV, PT_LOAD), None, id="static-riscv64"),
        pytest.param(elf(X86_64, PT_LOAD, bits=32), None, id="static-x32"),
        pytest.param(elf(X86_64, PT_INTERP, PT_LOAD), None, id="with-an-interpreter"),
        pytest.param(elf(X86_64, PT_LOAD, PT_DYNAMIC), None, id="with-dynamic-linking"),
        pytest.param(b"#!/bin/sh\n" + bytes(64), None, id="no-elf"),
        pytest.param(None, None, id="no-compiler"),
    ],
)
def test_only_a_static_launcher_gets_a_platform_tag(
    program: bytes | None, tag: str | None, builder: Builder, tmp_path: Path
) -> None:
    need(LINUX, "no other system has the launcher")
    compiler = tmp_path / "compiler"
    if program is not None:
        compiler.write_text(
            f"#!{sys.executable}\n"
            "import pathlib, sys\n"
            f"pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_bytes({program!r})\n"
        )
        compiler.chmod(0o755)
    wheel = builder.wheel(tmp_path / "wheel", CC=str(compiler))
    if tag is None:
        assert wheel.tag == "py3-none-any"
        assert LAUNCHER not in wheel.names
    else:
        assert wheel.path.match(f"*-py3-none-m*{tag}.whl")
        assert wheel.read(LAUNCHER) == program


def test_twine_check_passes(sdist: Path, platform_wheel: Wheel, pure_wheel: Wheel) -> None:
    distributions = (sdist, platform_wheel.path, pure_wheel.path)
    report = run(sys.executable, "-m", "twine", "check", "--strict", *distributions, cwd=ROOT)
    assert report.count("PASSED") == len(distributions)


@pytest.mark.parametrize("kind", ["regular", "editable", "pure"])
def test_an_install_gives_a_command_that_works_anywhere(
    kind: str, checkout: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    venv = tmp_path / "venv"
    python, scripts = environment(venv), venv / "bin"
    if kind == "pure":
        pure_wheel: Wheel = request.getfixturevalue("pure_wheel")
        install(python, pure_wheel.path, cwd=tmp_path)
    else:
        flags = ["--editable"] if kind == "editable" else []
        install(python, *flags, ".", cwd=checkout)
    for folder in (Path("/"), tmp_path, checkout):
        assert "--max-sessions" in run(scripts / "twistd", "mcpbridge", "--help", cwd=folder)
        assert "--max-sessions" in run(scripts / "mcpbridge", "--help", cwd=folder)
    # a demo server whose stdin is at its end has nothing to do
    run("sh", "-c", f"{python} -m mcpbridge.demo </dev/null", cwd=tmp_path)
    where = "import mcpbridge, twisted; print(mcpbridge.__file__, twisted.__file__)"
    ours, theirs = run(python, "-c", where, cwd=tmp_path).split()
    assert ours.startswith(str(checkout if kind == "editable" else venv))
    assert theirs.startswith(str(venv))
    # backends are started by the launcher where there is one
    chosen = "from mcpbridge.stdio import exec_chain; print(type(exec_chain.find_chain()).__name__)"
    compiled = kind != "pure" and LINUX and shutil.which("cc") is not None
    assert (run(python, "-c", chosen, cwd=tmp_path).strip() == "Compiled") is compiled


def test_the_version_is_in_one_place() -> None:
    namespace: dict[str, str] = {}
    exec((ROOT / "mcpbridge" / "_version.py").read_text(), namespace)
    assert importlib.metadata.version("mcpbridge") == namespace["__version__"]


def test_every_package_is_named() -> None:
    """Here at once, and not only when an installation is tried out."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = settings["tool"]["setuptools"]["packages"]
    found = {
        ".".join(each.parent.relative_to(ROOT).parts)
        for each in (ROOT / "mcpbridge").rglob("__init__.py")
    }
    assert found <= set(named)
