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
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


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
        "mcpbridge.backend",
        "mcpbridge.protocol",
        "mcpbridge.session",
        "mcpbridge.web",
        "twisted.plugins",
    ],
    package_data={"mcpbridge": ["py.typed"]},
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
