"""
Run the unit tests of a room against mutants of its modules, and print the score.

`make mutants` does that for the modules whose logic is subtle; `make mutants
MUTANTS=mcpbridge/mcp/pings.py` for the ones named.  Of each module a sample of
the mutants that cosmic-ray knows is tried, always the same one; with SAMPLE=0
all are.  The mutants are made in a copy of the tree, below `build`.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutants"
COPIED = ("mcpbridge", "tests", "twisted", "pyproject.toml", "setup.py")
#: The modules that are tried where none is named.
MODULES = (
    "jsonrpc/*.py",
    "mcp/*.py",
    "translation/*.py",
    "processes/pool.py",
    "stateless/*_pool.py",
    "stateless/*_worker.py",
)
#: How many mutants of a module are tried.
SAMPLE = int(os.environ.get("SAMPLE", "25"))
#: Seconds after which the tests count as hanging, which a mutant may cause.
TIMEOUT = 120.0
#: Operators whose mutants say nothing: no annotation is evaluated, and `|` is
#: hardly used elsewhere.
IGNORED = ("core/RemoveDecorator", "core/ReplaceBinaryOperator_BitOr")


def tests_of(module: Path) -> list[str]:
    """Return the tests of a module's room, with those of its own name first."""
    room = Path("tests", "unit", *module.parent.parts[1:])
    own = room / f"test_{module.stem}.py"
    return [str(each) for each in (own, room) if (ROOT / each).exists()]


def configure(module: Path) -> Path:
    """Write the file that tells cosmic-ray what to mutate and how to test it."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("--tb=no", "--hypothesis-profile", "quick", *tests_of(module)),
    ]
    config = COPY / "cosmic-ray.toml"
    config.write_text(
        "[cosmic-ray]\n"
        f'module-path = "{module}"\n'
        f"timeout = {TIMEOUT}\n"
        "excluded-modules = []\n"
        f"test-command = '{shlex.join(command)}'\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    return config


def score(module: Path) -> tuple[int, int]:
    """Try mutants of a module; print those that lived; return the killed and the tried."""
    config, session = configure(module), COPY / "session.sqlite"
    session.unlink(missing_ok=True)
    run = [sys.executable, "-m", "cosmic_ray.cli"]
    subprocess.run([*run, "init", config, session], cwd=COPY, check=True)
    with use_db(str(session), WorkDB.Mode.open) as work:
        items = [
            each
            for each in work.work_items
            if not each.mutations[0].operator_name.startswith(IGNORED)
        ]
        chosen = {each.job_id for each in items}
        if SAMPLE and len(items) > SAMPLE:
            chosen = {each.job_id for each in random.Random(0).sample(items, SAMPLE)}
        for each in list(work.work_items):
            if each.job_id not in chosen:
                work.set_result(each.job_id, WorkResult(WorkerOutcome.SKIPPED))
    subprocess.run([*run, "exec", config, session], cwd=COPY, check=True)
    killed = 0
    with use_db(str(session), WorkDB.Mode.open) as work:
        results = dict(work.results)
        for each in work.work_items:
            if each.job_id not in chosen:
                continue
            if results[each.job_id].is_killed:
                killed += 1
            else:
                print(f"lives: {module}: {each.mutations[0].definition_name}")
                print(results[each.job_id].diff, flush=True)
    return killed, len(chosen)


def main() -> None:
    """Try the modules that are named, or all of MODULES."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, COPY / name)
    named = [Path(each) for each in sys.argv[1:]]
    package = ROOT / "mcpbridge"
    found = sorted(each for pattern in MODULES for each in package.glob(pattern))
    modules = named or [each.relative_to(ROOT) for each in found if each.stem != "__init__"]
    all_killed = all_tried = 0
    for module in modules:
        killed, tried = score(module)
        all_killed, all_tried = all_killed + killed, all_tried + tried
        print(f"{module}: {killed} of {tried} mutants killed", flush=True)
    print(
        f"killed {all_killed} of {all_tried} mutants: {100 * all_killed / max(1, all_tried):.0f} %"
    )


if __name__ == "__main__":
    main()
