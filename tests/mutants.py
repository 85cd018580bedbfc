"""
Run the unit tests of a room against mutants of its modules, and print the score.

`make mutants` does that for the modules whose logic is subtle; `make mutants
MUTANTS=mcpbridge/mcp/pings.py` for the ones named.  cosmic-ray makes a dozen
mutants of each operator, nearly all of which fail alike, so one of each place
is tried, and of the places of each module a sample: always the same one, or
all with SAMPLE=0.  The mutants are made in a copy of the tree, below `build`.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkerOutcome, WorkItem, WorkResult

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
#: How many places of a module are tried.
SAMPLE = int(os.environ.get("SAMPLE", "25"))
#: Seconds after which the tests count as hanging, which a mutant may cause.
TIMEOUT = 120.0
#: Operators whose mutants say nothing: no annotation is evaluated, and `|` is
#: hardly used elsewhere.
IGNORED = ("core/RemoveDecorator", "core/ReplaceBinaryOperator_BitOr")

#: The rooms whose tests pass without a mutant.
PASSED: set[Path] = set()


def tests_of(module: Path) -> list[Path]:
    """Return the tests of a module's own name, where there are any, and those of its room."""
    room = Path("tests", "unit", *module.parent.parts[1:])
    own = room / f"test_{module.stem}.py"
    return [each for each in (own, room) if (ROOT / each).exists()]


def configure(module: Path) -> Path:
    """Write the file that tells cosmic-ray what to mutate and how to test it."""
    pytest = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("--tb=no", "--hypothesis-profile", "mutants"),
    ]
    # Most mutants fail the first command, which then saves the room's collection.
    command = " && ".join(shlex.join([*pytest, str(each)]) for each in tests_of(module))
    config = COPY / "cosmic-ray.toml"
    config.write_text(
        "[cosmic-ray]\n"
        f'module-path = "{module}"\n'
        f"timeout = {TIMEOUT}\n"
        "excluded-modules = []\n"
        f"test-command = {json.dumps(shlex.join(['sh', '-c', command]))}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    return config


def is_telling(mutation: MutationSpec) -> bool:
    """
    Tell whether a mutant can say something about the tests.

    The value of a constant at the top of a module is a choice, which the tests import.
    """
    is_constant = mutation.definition_name is None
    return not mutation.operator_name.startswith(IGNORED) and not (
        is_constant and mutation.operator_name == "core/NumberReplacer"
    )


def one_of_each_place(items: Iterable[WorkItem], chance: random.Random) -> list[WorkItem]:
    """Return one mutant of each operator, number or keyword, in the order of the module."""
    places: dict[tuple[tuple[int, int], str], list[WorkItem]] = {}
    for each in sorted(
        items, key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence)
    ):
        mutation = each.mutations[0]
        family = mutation.operator_name.partition("_")[0]
        places.setdefault((mutation.start_pos, family), []).append(each)
    return [chance.choice(places[place]) for place in sorted(places)]


def is_code(mutation: MutationSpec, source: str) -> bool:
    """Tell whether a mutant can be compiled: `*` is no operator in a list of parameters."""
    operator = get_operator(mutation.operator_name)()
    try:
        compile(mutate_code(source, operator, mutation.occurrence), "mutant", "exec")
    except (AttributeError, SyntaxError):
        return False
    return True


def score(module: Path) -> tuple[int, int]:
    """Try mutants of a module; print those that lived; return the killed and the tried."""
    config, session = configure(module), COPY / "session.sqlite"
    session.unlink(missing_ok=True)
    run = [sys.executable, "-m", "cosmic_ray.cli"]
    if tests_of(module)[-1] not in PASSED:
        # Tests that fail anyway would kill every mutant.
        subprocess.run([*run, "baseline", config], cwd=COPY, check=True)
        PASSED.add(tests_of(module)[-1])
    subprocess.run([*run, "init", config, session], cwd=COPY, check=True)
    with use_db(str(session), WorkDB.Mode.open) as work:
        chance = random.Random(0)
        telling = [each for each in work.work_items if is_telling(each.mutations[0])]
        source = (COPY / module).read_text()
        places = one_of_each_place(telling, chance)
        items = [each for each in places if is_code(each.mutations[0], source)]
        if SAMPLE and len(items) > SAMPLE:
            items = chance.sample(items, SAMPLE)
        chosen = {each.job_id for each in items}
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
