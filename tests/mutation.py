"""Mutation testing: do the tests near a module notice a small slip in it?

    python -m tests.mutation runner/schedules/stall.py

makes every mutant of the module that cosmic-ray's operators know, runs the near tests on each,
and prints the mutants that survive. The operators are cosmic-ray's; its own runner starts an
interpreter for each mutant, which takes seconds. Here one process imports what the tests import
(all but this repository) and forks for each mutant, in a copy of the repository.

Mutants of annotations alone are left out. tests/equivalent_mutants.txt has the mutants that no
test can tell from the module, each with the reason.
"""

import argparse
import ast
import difflib
import gc
import importlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
OWN = ("runner", "backends", "tests")  # imported anew for each mutant
EQUIVALENT = REPOSITORY / "tests" / "equivalent_mutants.txt"

# The cheapest tests that hold what a module claims.
NEAR = {
    "runner/schedules/stall.py": "tests/schedules/test_stall.py",
    "runner/components/losses.py": "tests/components/test_losses_metrics.py",
    "runner/components/metrics.py": "tests/components/test_losses_metrics.py",
    "runner/data/order.py": "tests/data/test_order.py",
    "runner/schedules/units.py": "tests/schedules/test_units.py",
    "runner/schedules/ramps.py": "tests/schedules/test_ramps.py",
    "runner/report/statistics.py": (
        "tests/report/test_statistics.py -k 'not coarse and not told_apart and not calculation'"
    ),
    "runner/schedules/named.py": "tests/schedules/test_named.py",
    "runner/components/optimizers.py": (
        "tests/components/test_optimizers.py -k 'not one_cycle and not first_state'"
    ),
    "runner/run/checkpoint.py": "tests/run/test_checkpoint.py -k 'not records'",
    "runner/run/resume.py": "tests/run/test_resume_rules.py",
}


# Two of them collect garbage three times, which takes longer than most tests.
_WITHOUT = "-p no:xdist -p no:cacheprovider -p no:unraisableexception -p no:threadexception"


class Mutant(NamedTuple):
    line: int  # of the module, from 1
    before: str
    after: str
    source: str  # of the whole module

    def __str__(self) -> str:
        return f"line {self.line}\n  - {self.before}\n  + {self.after}"


class Running(NamedTuple):
    mutant: Mutant
    copy: Path
    since: float


def mutants(source: str) -> list[Mutant]:
    """All that differ from the source in more than annotations, each once."""
    lines = source.splitlines(keepends=True)
    seen, found = set[tuple[int, str]](), []
    for begin, end in _statements(source):  # one by one: the operators parse what they mutate
        before, own, after = (
            "".join(part) for part in (lines[:begin], lines[begin:end], lines[end:])
        )
        seen.add((begin, _meaning(own)))
        for mutated in _mutated(own):
            meaning = _meaning(mutated)
            place = begin if meaning else -1, meaning
            if place not in seen:
                seen.add(place)
                found.append(_mutant(source, before + mutated + after))
    return sorted(found)


def _statements(source: str) -> Iterator[tuple[int, int]]:
    """The lines of each statement of the module, from 0, its decorators with it."""
    for node in ast.parse(source).body:
        first = [node, *getattr(node, "decorator_list", ())]
        assert node.end_lineno
        yield min(it.lineno for it in first) - 1, node.end_lineno


def _mutated(source: str) -> Iterator[str]:
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if operator.arguments() or name.endswith(("_Eq_Is", "_NotEq_IsNot")):
            continue  # needs settings of its own; Python shares short strings and small numbers
        occurrence = 0
        while (mutated := mutate_code(source, operator(), occurrence)) is not None:
            yield mutated
            occurrence += 1


def _meaning(source: str) -> str:
    """The syntax tree without its annotations; of a source that is no Python, nothing."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(0)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def _mutant(source: str, mutated: str) -> Mutant:
    before, after = source.splitlines(), mutated.splitlines()
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    _, i, j, k, m = next(block for block in blocks if block[0] != "equal")
    return Mutant(i + 1, _one_line(before[i:j]), _one_line(after[k:m]), mutated)


def _one_line(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def equivalent(module: str) -> dict[tuple[str, str], str]:
    """(before, after) -> why no test can tell the two apart."""
    found, before, after, here = {}, "", "", False
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        kind, text = line[:1], line[1:].strip()
        if kind == "#":
            here = text in (module, "any module")
        elif kind == "-":
            before = text
        elif kind == "+":
            after = text
        elif kind == "=" and here:
            found[before, after] = text
    return found


def _copy(folder: Path) -> Path:
    """The tracked files, and those that git would track."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listed, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for name in names.split("\0"):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def _start(copy: Path, tests: list[str], timeout: float) -> int:
    """The tests in a fork, which leads a process group of its own; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        with open(copy / "log.txt", "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(copy)
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(REPOSITORY)))]
        for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
            del sys.modules[name]
        import pytest

        options = f"-x {_WITHOUT} -W ignore -o".split()
        own = f"addopts=-q --strict-markers --timeout={timeout:.0f} -m 'not slow'"
        status = int(pytest.main([*options, own, *tests]))
        loaded = [name for name in sys.modules if name.split(".")[0] not in OWN]
        (copy / "loaded.json").write_text(json.dumps([loaded, dict(os.environ)]), encoding="utf-8")
        sys.stdout.flush()
        os._exit(status)
    finally:
        os._exit(70)


def _status(child: int, since: float, timeout: float) -> int | None:
    """Its exit status; 124 after the time's end; None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended and time.monotonic() < since + timeout:
        return None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # with the processes that the tests have left
    if ended:
        return os.waitstatus_to_exitcode(status)
    os.waitpid(child, 0)
    return 124


def _warm(copy: Path, tests: list[str]) -> float:
    """Check that the tests pass on the module as it is, then import what they imported; seconds."""
    seconds = 0.0
    for _ in range(2):  # cold, then warm
        began = time.monotonic()
        child = _start(copy, tests, 600)
        while (status := _status(child, began, 900)) is None:
            time.sleep(0.02)
        if status:
            sys.exit(
                (copy / "log.txt").read_text(errors="replace") + "The tests fail without a mutant."
            )
        seconds = time.monotonic() - began
        loaded, environment = json.loads((copy / "loaded.json").read_text(encoding="utf-8"))
        os.environ.update(environment)
        for name in loaded:
            with suppress(Exception):
                importlib.import_module(name)
    gc.freeze()
    return seconds


def run(
    module: str, tests: list[str], chosen: list[Mutant], num_jobs: int
) -> Iterator[tuple[Mutant, int]]:
    """Each mutant with the exit status of the tests: 0 if they did not notice it."""
    source = (REPOSITORY / module).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copies = [_copy(Path(folder) / str(i)) for i in range(num_jobs)]
        seconds = _warm(copies[0], tests)
        timeout = 30 + 10 * seconds
        print(f"{module}: {len(chosen)} mutants, the tests take {seconds:.1f} s", flush=True)
        waiting, running = list(reversed(chosen)), dict[int, Running]()
        while waiting or running:
            while copies and waiting:
                mutant, copy = waiting.pop(), copies.pop()
                (copy / module).write_text(mutant.source, encoding="utf-8")
                running[_start(copy, tests, timeout)] = Running(mutant, copy, time.monotonic())
            for child, it in list(running.items()):
                if (status := _status(child, it.since, timeout)) is not None:
                    del running[child]
                    (it.copy / module).write_text(source, encoding="utf-8")
                    copies.append(it.copy)
                    yield it.mutant, status
            time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("module", help=f"such as {next(iter(NEAR))}")
    parser.add_argument("--tests", help="pytest's arguments, if not those of NEAR")
    parser.add_argument("--most", type=int, default=150, help="a sample, always the same, of more")
    parser.add_argument("--lines", help="only those lines, such as 20-40")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    # two mutants of one second and one size would share their bytecode
    sys.dont_write_bytecode = True
    os.nice(19)

    every = mutants((REPOSITORY / given.module).read_text(encoding="utf-8"))
    if given.lines:
        first, last = map(int, given.lines.split("-"))
        every = [mutant for mutant in every if first <= mutant.line <= last]
    chosen = every
    if len(every) > given.most:
        chosen = sorted(random.Random(0).sample(every, given.most))
        print(f"a sample of {given.most} out of {len(every)} mutants")
    same = equivalent(given.module)
    num = {"killed": 0, "equivalent": 0, "survived": 0}
    tests = shlex.split(given.tests or NEAR[given.module])
    for mutant, status in run(given.module, tests, chosen, given.jobs):
        survived = "equivalent" if (mutant.before, mutant.after) in same else "survived"
        outcome = "killed" if status else survived
        num[outcome] += 1
        if outcome == "survived":
            print(mutant, flush=True)
    share = num["killed"] / max(1, num["killed"] + num["survived"])
    print(
        ", ".join(f"{count} {outcome}" for outcome, count in num.items()),
        f"{share:.1%} caught",
        sep="; ",
    )


if __name__ == "__main__":
    main()
