"""
Supply what `pyproject.toml` cannot express.

That is the version, the project's URLs, the long description and the compiled
launcher.  All other metadata is in `pyproject.toml`.
"""

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
LAUNCHER = Path("mcpbridge", "stdio", "launch")

#: The project's home.  No other file names it.
HOME = "https://github.com/mcpbridge/mcpbridge"


class BuildWithLauncher(build_py):  # type: ignore[misc]
    """
    Compile the launcher beside its source, where there is a C compiler.

    Without one nothing is missing but some speed: the exec chain of
    util-linux does the same.
    """

    def run(self) -> None:
        """Copy the modules, then compile."""
        super().run()
        built = Path() if self.editable_mode else Path(self.build_lib)
        self.launcher = compile_launcher(built / LAUNCHER)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The launcher is a file of the package like the others."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        launcher = getattr(self, "launcher", None)
        return [*outputs, str(launcher)] if launcher and not self.editable_mode else outputs


class LinuxDistribution(Distribution):  # type: ignore[misc]
    """On Linux a wheel may hold the launcher, and is for this kind of machine."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is for one platform."""
        return sys.platform.startswith("linux")


def compile_launcher(target: Path) -> Path | None:
    """Static where the C library allows it, for a quicker start; None without a compiler."""
    if not sys.platform.startswith("linux"):
        return None
    compiler: Any = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    source = HERE / LAUNCHER.with_suffix(".c")
    for options in (["-O2", "-static"], ["-O2"]):
        for name in (compiler, "cc"):
            try:
                subprocess.run([name, *options, "-o", target, source], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"the launcher was not compiled with {name}: {error}", file=sys.stderr)
            else:
                return target
    return None


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
    distclass=LinuxDistribution,
    cmdclass={"build_py": BuildWithLauncher},
)
