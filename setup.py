"""
Supply what `pyproject.toml` cannot express.

That is the version, the project's URLs, the long description, the compiled
launcher and the wheel's tag.  All other metadata is in `pyproject.toml`.
"""

import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
LAUNCHER = Path("mcpbridge", "stdio", "launch")

#: The project's home.  No other file names it.
HOME = "https://github.com/mcpbridge/mcpbridge"

#: Compiler options for a static program.  Some compilers would make a static PIE
#: of it, which has a dynamic segment.
STATIC = ["-static", "-no-pie"]

#: The same without a C library, on the machines whose system calls `launch.c` knows.
WITHOUT_LIBC = [
    *STATIC,
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-DWITHOUT_LIBC",
]

#: The machines that get a wheel of their own, by `e_machine` of the ELF header.
MACHINES = {62: "x86_64", 183: "aarch64"}

_PT_DYNAMIC, _PT_INTERP = 2, 3


class LauncherDistribution(Distribution):  # type: ignore[misc]
    """A distribution with an optional compiled launcher."""

    #: The launcher to put into the wheel; `BuildWheel` sets it, `BuildModules` copies it.
    launcher: Path | None = None

    def has_ext_modules(self) -> bool:
        """Return True if the wheel holds a launcher, so that it installs into `platlib`."""
        return self.launcher is not None


class BuildWheel(bdist_wheel):  # type: ignore[misc]
    """
    Build a platform wheel if a static launcher can be compiled, otherwise a pure one.

    Both work with every Python 3.  Without the launcher, a backend starts some
    milliseconds later.
    """

    platform_tag: str | None = None

    def run(self) -> None:
        """Compile the launcher, then build the wheel that suits the outcome."""
        with TemporaryDirectory() as folder:
            launcher = Path(folder, LAUNCHER.name)
            if wants_launcher() and compile_launcher(launcher, WITHOUT_LIBC, STATIC):
                self.platform_tag = platform_tag(launcher)
            if self.platform_tag is not None:
                self.distribution.launcher = launcher
            self.root_is_pure = self.platform_tag is None
            super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag: any Python 3, no ABI, and the launcher's platform."""
        return ("py3", "none", self.platform_tag or "any")


class BuildModules(build_py):  # type: ignore[misc]
    """Copy the modules, and the launcher if there is one."""

    def run(self) -> None:
        """
        Put the launcher beside its source.

        An editable install stays on this machine, so its launcher may be
        linked dynamically.
        """
        super().run()
        if self.editable_mode:
            if wants_launcher():
                compile_launcher(HERE / LAUNCHER, WITHOUT_LIBC, STATIC, [])
            return
        target = Path(self.build_lib, LAUNCHER)
        target.unlink(missing_ok=True)  # an earlier build may have left one
        if self.distribution.launcher is not None:
            shutil.copy2(self.distribution.launcher, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that this command writes, the launcher among them."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        if self.distribution.launcher is not None:
            outputs.append(str(Path(self.build_lib, LAUNCHER)))
        return outputs


def wants_launcher() -> bool:
    """Return True on Linux, unless the environment variable `MCPBRIDGE_PURE` forbids it."""
    return sys.platform.startswith("linux") and os.environ.get("MCPBRIDGE_PURE", "0") in ("", "0")


def compile_launcher(target: Path, *choices: list[str]) -> bool:
    """
    Compile the launcher with the first of these choices of options that works,
    with `$CC`, or with Python's own compiler or `cc`.

    Return False if none of them can.
    """
    source = HERE / LAUNCHER.with_suffix(".c")
    chosen = os.environ.get("CC")
    compilers: list[Any] = [chosen] if chosen else [sysconfig.get_config_var("CC") or "cc", "cc"]
    for options, compiler in product(choices, compilers):
        command = [*shlex.split(compiler), "-O2", *options, "-o", str(target), str(source)]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{compiler} did not compile the launcher: {error}", file=sys.stderr)
        else:
            target.chmod(0o755)
            return True
    return False


def platform_tag(program: Path) -> str | None:
    """
    Return the platform tag of a wheel that holds this program, None if there is none.

    Only a static ELF program for one of `MACHINES` has a tag.  It needs no C
    library, so any version of one will do: the tag names an old version.  The
    machine is read from the program and not asked of Python, because `$CC` may
    be a cross compiler.
    """
    image = program.read_bytes()
    if image[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return None
    machine = MACHINES.get(struct.unpack_from("<H", image, 18)[0])
    [offset] = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    segments = {struct.unpack_from("<I", image, offset + size * i)[0] for i in range(count)}
    if machine is None or segments & {_PT_DYNAMIC, _PT_INTERP}:
        return None
    musl = "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE"))
    return f"{'musllinux_1_1' if musl else 'manylinux_2_17'}_{machine}"


def read_version() -> str:
    """Read the version as text: importing the package would need its dependencies."""
    text = (HERE / "mcpbridge" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("mcpbridge/_version.py holds no __version__")
    return found[1]


def long_description(version: str) -> str:
    """Return the README with absolute links, which also work on a package index."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?![a-z]+:|#)", f"]({HOME}/blob/v{version}/", text)


VERSION = read_version()

setup(
    version=VERSION,
    long_description=long_description(VERSION),
    long_description_content_type="text/markdown",
    project_urls={
        "Homepage": HOME,
        "Documentation": f"{HOME}/tree/main/docs",
        "Source": HOME,
        "Changelog": f"{HOME}/blob/main/NEWS.md",
        "Issues": f"{HOME}/issues",
    },
    distclass=LauncherDistribution,
    cmdclass={"bdist_wheel": BuildWheel, "build_py": BuildModules},
)
