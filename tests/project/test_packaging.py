"""What is installed is what a user runs, from whatever folder."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.real.parts import ROOT

pytestmark = pytest.mark.slow

PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
#: What makes a checkout out of this tree: no environments, nothing built.
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".real", ".*_cache", "build", "dist", "*.egg-info", "__pycache__", "dropin.*"
)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without what this test's own environment would lend it."""
    lent = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in lent}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tree as it is now, so that building leaves nothing in it."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    return copy


def test_the_wheel_holds_the_package_and_one_plugin(checkout: Path, tmp_path: Path) -> None:
    run(sys.executable, *PIP, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", ".", cwd=checkout)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = archive.read(metadata).decode()
    modules = {str(path.relative_to(checkout)) for path in checkout.glob("mcpbridge/**/*.py")}
    info = metadata.removesuffix("METADATA")
    installed = {name for name in names if not name.startswith(info)}
    # the launcher is there where there is a compiler
    installed.discard("mcpbridge/stdio/launch")
    data = {"mcpbridge/py.typed", "mcpbridge/stdio/launch.c"}
    assert installed == modules | data | {"twisted/plugins/mcpbridge_plugin.py"}
    assert f"{info}licenses/LICENSE" in names or f"{info}LICENSE" in names
    assert "\nRequires-Python: >=3.11\n" in described
    assert "MIT" in described


@pytest.mark.parametrize("editable", [False, True], ids=["regular", "editable"])
def test_an_install_gives_a_command_that_works_anywhere(
    editable: bool, checkout: Path, tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    python, scripts = venv / "bin" / "python", venv / "bin"
    flags = ["--editable"] if editable else []
    run(python, *PIP, "install", *flags, ".", cwd=checkout)
    for folder in (Path("/"), tmp_path, checkout):
        assert "--max-sessions" in run(scripts / "twistd", "mcpbridge", "--help", cwd=folder)
        assert "--max-sessions" in run(scripts / "mcpbridge", "--help", cwd=folder)
    # a demo server whose stdin is at its end has nothing to do
    run("sh", "-c", f"{python} -m mcpbridge.demo </dev/null", cwd=tmp_path)
    where = "import mcpbridge, twisted; print(mcpbridge.__file__, twisted.__file__)"
    ours, theirs = run(python, "-c", where, cwd=tmp_path).split()
    assert ours.startswith(str(checkout if editable else venv))
    assert theirs.startswith(str(venv))


def test_the_version_is_in_one_place() -> None:
    namespace: dict[str, str] = {}
    exec((ROOT / "mcpbridge" / "_version.py").read_text(), namespace)
    assert importlib.metadata.version("mcpbridge") == namespace["__version__"]
