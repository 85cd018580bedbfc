"""
Packaging.  Tool settings are in `pyproject.toml`.

The packages are named one by one: `find_packages` does not see
`twisted.plugins`, which has no `__init__.py` and must never get one, and the
namespace variant would add `docs` and `tests`.  `package_dir` makes an
editable install put this folder on `sys.path`; without it setuptools installs
an import hook, which Twisted's search for plugins does not see, and `twistd`
would not know the command.
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


def version() -> str:
    """The version, read as text: importing the package would need its dependencies."""
    text = (HERE / "mcpbridge" / "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("mcpbridge/_version.py holds no __version__")
    return found[1]


def readme() -> str:
    """The long description; empty in a tree without a README."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


TEST = ["hypothesis>=6.100", "pytest>=9", "pytest-twisted>=1.14", "treq>=24.9"]
DEV = [*TEST, "coverage>=7.6", "mypy>=1.15", "mypy-zope>=1.0.9", "ruff>=0.12", "towncrier>=24.8"]

setup(
    name="mcpbridge",
    version=version(),
    description="Puts a stdio MCP server on the network over HTTP and SSE, one process per client",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="the mcpbridge authors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Internet :: WWW/HTTP :: HTTP Servers",
        "Typing :: Typed",
    ],
    keywords=["mcp", "model context protocol", "sse", "stdio", "twisted"],
    python_requires=">=3.11",
    package_dir={"": "."},
    packages=[
        "mcpbridge",
        "mcpbridge.config",
        "mcpbridge.jsonrpc",
        "mcpbridge.mcp",
        "mcpbridge.processes",
        "mcpbridge.session",
        "mcpbridge.stateless",
        "mcpbridge.stdio",
        "mcpbridge.translation",
        "mcpbridge.web",
        "twisted.plugins",
    ],
    package_data={"mcpbridge": ["py.typed"], "mcpbridge.stdio": ["launch.c"]},
    cmdclass={"build_py": BuildWithLauncher},
    distclass=LinuxDistribution,
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "twisted>=26.10",
        "klein>=24.8",
        "zope.interface>=8.0",
        "Automat>=25.4",
        "msgspec>=0.19",
    ],
    extras_require={
        "tls": ["twisted[tls]>=26.10"],
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["mcpbridge = mcpbridge.script:main"]},
)
