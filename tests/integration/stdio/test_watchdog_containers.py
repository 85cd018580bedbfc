"""The watchdog removes the containers that it was told about."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from mcpbridge.stdio import watchdog_program
from tests.engine.running import LABEL, Engine, running_engine

WANTED = f"label={LABEL}=b"
SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Run an engine, with short pauses of the watchdog."""
    monkeypatch.setattr(watchdog_program, "ENGINE_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(watchdog_program, "BIRTH_SECONDS", 0.05)
    with running_engine() as engine:
        yield engine


def remove(engine: Engine) -> tuple[int, str]:
    folder = str(engine.socket.parent)
    environment = {"PATH": os.defpath, "DOCKER_HOST": str(engine.socket), "TMPDIR": folder}
    return watchdog_program.remove_containers([str(engine.bin / "docker")], WANTED, environment)


def test_only_labelled_containers_are_removed(engine: Engine) -> None:
    for label in (f"{LABEL}=b", f"{LABEL}=b", f"{LABEL}=bb", "other=b"):
        engine.start(label, *SLEEPER)
    assert remove(engine) == (2, "")
    assert engine.containers(f"{LABEL}=b") == []
    assert len(engine.containers()) == 2


def test_cidfiles_are_removed(engine: Engine) -> None:
    folder, other = (engine.socket.parent / f"mcpbridge-{each}" for each in ("b", "bb"))
    for each in (folder, other):
        each.mkdir()
        (each / "cidfile").touch()
    remove(engine)
    assert not folder.exists()
    assert (other / "cidfile").exists()


def test_without_containers_nothing_is_removed(engine: Engine) -> None:
    assert remove(engine) == (0, "")
    assert engine.commands("rm") == []


def test_engine_that_ignores_the_filter_loses_no_container(engine: Engine) -> None:
    """The watchdog checks the label of each container itself."""
    engine.start(f"{LABEL}=other", *SLEEPER)
    engine.start(f"{LABEL}=b", *SLEEPER)
    engine.enable_fault("blind")
    _, problem = remove(engine)
    assert problem.endswith("does not have the label that was asked for")
    engine.disable_fault("blind")
    assert len(engine.containers()) == len(engine.containers(f"{LABEL}=other")) == 1


def test_container_created_after_the_first_listing_is_removed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's CLI may have requested it just before the bridge was killed."""
    looks: list[list[str]] = []
    run_engine = watchdog_program.run_engine

    def run(command: list[str], environment: dict[str, str]) -> str:
        output = run_engine(command, environment)
        if "ps" in command and not looks:
            # Born between the first look and the second.
            engine.start(f"{LABEL}=b", *SLEEPER)
        looks.append(output.split())
        return output

    monkeypatch.setattr(watchdog_program, "run_engine", run)
    assert remove(engine) == (1, "")
    assert looks[0] == []
    assert engine.containers() == []


def test_unreachable_engine_is_reported(engine: Engine) -> None:
    engine.stop_answering()
    removed, problem = remove(engine)
    assert removed == 0
    assert "Cannot connect to the daemon" in problem
    engine.resume_answering()


def test_failed_removal_is_reported_and_can_be_repeated(engine: Engine) -> None:
    engine.start(f"{LABEL}=b", *SLEEPER)
    engine.enable_fault("stuck")
    _, problem = remove(engine)
    assert "removal is stuck" in problem
    engine.disable_fault("stuck")
    assert remove(engine) == (1, "")


@pytest.mark.parametrize("volumes", [False, True])
def test_volumes_of_a_container_with_rm_are_removed(engine: Engine, volumes: bool) -> None:
    engine.start(f"{LABEL}=b", *SLEEPER, volumes=volumes)
    assert remove(engine) == (1, "")
    [line] = engine.commands("rm")
    assert ("-v" in line) is volumes
