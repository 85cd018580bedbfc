"""
Run the fuzzers, each for some seconds, beginning with what is in its corpus.

`make fuzz` runs all, `make fuzz FUZZ=60 TARGETS='operations bearer'` some for longer.  With
atheris they are guided by what they cover.  Where it is not installed, hypothesis changes
the inputs of the corpus, which finds less.  An input that fails is in
`build/fuzz/TARGET/`: with its repair it goes into `tests/fuzz/corpus/TARGET/`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from ast import literal_eval
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
WORDS = Path(__file__).parent / "words.dict"
#: Where new inputs and failures go.
FOUND = ROOT / "build" / "fuzz"
#: The longest input that atheris makes, in bytes.
MAX_LENGTH = 2048
#: Seconds after which an input counts as hanging.
HANGING = 10
#: How many examples hypothesis tries before the time is looked at.
EXAMPLES = 200


def corpus_of(name: str) -> list[Path]:
    """Return the kept inputs of a target."""
    return sorted(each for each in (CORPUS / name).glob("*") if each.is_file())


def word_list() -> list[bytes]:
    """Return the words that are put into inputs, from the dictionary of libFuzzer."""
    lines = WORDS.read_text("ascii").splitlines()
    return [literal_eval(f"b{line}") for line in lines if line.startswith('"')]


def guided(name: str, arguments: list[str]) -> None:
    """Fuzz one target with atheris in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["mcpbridge"]):
        from tests.fuzz.targets import load

        targets = load()
    atheris.Setup([sys.argv[0], *arguments], targets[name])
    atheris.Fuzz()


def changed(name: str, seconds: float) -> None:
    """Fuzz one target with hypothesis for some seconds."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from tests.fuzz.targets import load

    run = load()[name]
    inputs = [each.read_bytes() for each in corpus_of(name)]
    part = st.sampled_from(word_list()) | st.binary(max_size=4)

    @st.composite
    def examples(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(inputs)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            data[at : at + draw(st.integers(0, 3))] = draw(part)
        return bytes(data)

    until = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < until:
        settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )(given(examples())(_kept(name, run)))()
        tried += EXAMPLES
    print(f"{name}: {tried} examples", flush=True)


def _kept(name: str, run: Target) -> Target:
    """Return a target that keeps the input it fails with."""

    def kept(data: bytes) -> None:
        try:
            run(data)
        except BaseException:
            FOUND.joinpath(name, "failure").write_bytes(data)
            raise

    return kept


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz a target in a process of its own; return False if it failed."""
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.run", "--only", name]
    if find_spec("atheris") is None:
        return subprocess.run([*command, f"--seconds={seconds}"], cwd=ROOT).returncode == 0
    command += [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_LENGTH}",
        f"-timeout={HANGING}",
        f"-dict={WORDS}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=0",
        "-verbosity=0",
        *(str(each) for each in (found, CORPUS / name)),
    ]
    # What failed before is no input of a corpus.
    for each in (*found.glob("crash-*"), *found.glob("timeout-*")):
        each.rename(FOUND / f"{name}-{each.name}")
    return subprocess.run(command, cwd=ROOT).returncode == 0


def main() -> int:
    """Run the fuzzers that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Run the fuzzers.")
    parser.add_argument("--seconds", type=int, default=20, help="for each target (default: 20)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="names of targets (default: all)")
    options, more = parser.parse_known_args()
    if options.only and find_spec("atheris") is not None:
        guided(options.only, more + options.targets)
    if options.only:
        changed(options.only, options.seconds)
        return 0
    from tests.fuzz.targets import load

    known = sorted(load())
    unknown = sorted(set(options.targets) - set(known))
    if unknown:
        parser.error(f"no targets: {', '.join(unknown)}; there are {', '.join(known)}")
    if find_spec("atheris") is None:
        print("there is no atheris for this Python: hypothesis changes the inputs of the corpus")
    failed = []
    for name in options.targets or known:
        print(f"{name}, {options.seconds} s", flush=True)
        if not fuzz(name, options.seconds):
            failed.append(name)
    if failed:
        print(f"failed, with the inputs in {FOUND}: {', '.join(failed)}")
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
