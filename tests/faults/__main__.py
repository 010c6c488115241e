"""python -m tests.faults --backend NAME [--long]: every fault on both backends, and the table of
what was survived."""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.run import run_folder
from tests import warm
from tests.faults import many as rows_of_many
from tests.faults import rows

SHORT = {
    "kill": 3,
    "end": 2,
    "end_twice": 1,
    "full": 1,
    "read_only": 1,
    "cut": 20,
    "flip": 50,
    "race": 1,
}
SHORT |= {"terminal": 1, "file_limit": 1}
SHORT |= {"kill_at_end": 2, "kill_longer": 1, "link": 1, "cut_short": 1}
LONG = {
    "kill": 500,
    "end": 200,
    "end_twice": 50,
    "full": 100,
    "read_only": 3,
    "cut": 200,
    "flip": 500,
    "race": 100,
}
LONG |= {"share": 60, "kill_own": 20, "parent": 30, "terminal": 100, "file_limit": 100}
LONG |= {"kill_state": 60, "kill_rank": 50}
LONG |= {"kill_at_end": 50, "kill_longer": 100, "link": 50, "cut_short": 100}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument(
        "--long", action="store_true", help="the long pass, an hour or so on two cores"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the long pass's trials")
    parser.add_argument("--backend", choices=["lightning", "keras"], required=True)
    parser.add_argument("--only", choices=[*LONG], help="one of the faults")
    parser.add_argument("--folder", type=Path, help="where the runs are made, if not in TMPDIR")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    warm.prepare(said.backend)
    with tempfile.TemporaryDirectory(dir=said.folder) as name:
        trials = (
            {fault: max(1, round(num * said.share)) for fault, num in LONG.items()}
            if said.long
            else SHORT
        )
        trials = {fault: num for fault, num in trials.items() if said.only in (None, fault)}
        failures = survive(said.backend, trials, Path(name), random.Random(said.seed), _say)
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


def _say(line: str) -> None:
    print(line, flush=True)


def survive(
    backend: str,
    trials: dict[str, int],
    here: Path,
    draw: random.Random,
    say: Callable[[str], None],
) -> list[str]:
    """A line for each fault; what was not survived."""
    failures: list[str] = []
    expected = rows.uninterrupted(here / "whole", rows.command(backend))
    whole = rows.folder_of(here / "whole")
    assert whole is not None
    half = here / "half"
    half.mkdir()
    # which does not go by its length
    constant = [said for said in rows.command(backend) if said != "schedule=cosine"]
    stopped = warm.run(half, [*constant, "trainer.max_steps=50"])
    assert stopped.status == 0, stopped.output
    short = rows.folder_of(half)
    assert short is not None
    unfinished = shutil.copytree(short, here / "unfinished", symlinks=True)
    _as_interrupted(unfinished)
    constantly = rows.uninterrupted(here / "constant", constant)  # what a longer one must come to

    def each(fault: str, trial: Callable[[Path, int], Any]) -> list[Any]:
        found, before = [], len(failures)
        if fault not in trials:
            return found
        for number in range(trials[fault]):
            with tempfile.TemporaryDirectory(dir=here) as name:
                try:
                    found.append(trial(Path(name), number))
                except PermissionError as error:
                    say(f"{backend}  {fault}: cannot be made here, {error}")
                    return found
                except (AssertionError, TimeoutError) as error:
                    failures.append(f"{backend}  {fault} {number}: {error}")
        say(f"{backend}  {fault}: {len(found)} of {len(found) + len(failures) - before} survived")
        return found

    command = rows.command(backend)
    hits = each("kill", lambda folder, i: rows.kill(folder, backend, command, draw, expected, i))
    if hits:
        say(f"{backend}  kill: {sum(hits)} of them inside a save")
    if "kill_own" in trials:
        own = [rows.own_command(backend)]
        come_to = [rows.uninterrupted(here / "own", own[0])]
        trained = rows.folder_of(here / "own")
        assert trained is not None
        own.append(rows.tuned_command(backend, trained))
        come_to.append(rows.uninterrupted(here / "tuned", own[1]))
        hits = each(
            "kill_own",
            lambda folder, i: rows.kill(
                folder, backend, own[i % 2], draw, come_to[i % 2], i, rows.TRUST
            ),
        )
        say(f"{backend}  kill_own: {sum(hits)} of them inside a save")
    if "kill_state" in trials:
        states = [rows.state_command(backend, name) for name in rows.STATES]
        ends = [rows.uninterrupted(here / f"state_{i}", said) for i, said in enumerate(states)]
        each(
            "kill_state",
            lambda folder, i: rows.kill_state(
                folder, backend, states[i // 2 % len(states)], draw, ends[i // 2 % len(ends)], i
            ),
        )
    if "kill_rank" in trials:
        bits = rows.uninterrupted(here / "ranks", rows.ranks_command(backend, 1))
        found = each("kill_rank", lambda folder, i: rows.kill_rank(folder, backend, draw, bits, i))
        hit, spent = zip(*found, strict=True) if found else ((), (0.0,))
        say(
            f"{backend}  kill_rank: {sum(hit)} of them before the run's end; the last process was "
            f"gone after {max(spent):.2f} s at most"
        )
    hits = each("kill_at_end", lambda folder, i: rows.kill_at_end(folder, backend, expected, i))
    if hits:
        say(f"{backend}  kill_at_end: {sum(hits)} of them before the result")
    each(
        "kill_longer", lambda folder, i: rows.kill_longer(folder, backend, draw, short, constantly)
    )
    each("link", lambda folder, i: rows.link(folder, backend, draw, short))
    each("cut_short", lambda folder, i: rows.cut_short(folder, backend, draw, short, constantly))
    spent = each("end", lambda folder, i: rows.end(folder, backend, draw, expected, i))
    if spent:
        say(f"{backend}  end: the longest took {max(spent):.2f} s")
    each("end_twice", lambda folder, i: rows.end_twice(folder, backend, draw, expected, i))
    each("full", lambda folder, i: rows.full(folder, backend, draw))
    each("read_only", lambda folder, i: rows.read_only(folder, backend))
    each("cut", lambda folder, i: rows.damage(whole, draw, cut=True))
    each("flip", lambda folder, i: rows.damage(whole, draw, cut=False))
    each("race", lambda folder, i: rows.race(folder, backend, unfinished))
    each("terminal", lambda folder, i: rows_of_many.terminal(folder, backend, draw, expected, i))
    hits = each(
        "file_limit", lambda folder, i: rows_of_many.file_limit(folder, backend, draw, expected)
    )
    if hits:
        say(f"{backend}  file_limit: {sum(hits)} of them met it")
    if {"share", "parent"} & set(trials):
        of_seeds = rows_of_many.alone(here / "alone", backend)
        each("share", lambda folder, i: rows_of_many.share(folder, backend, draw, of_seeds, i))
        spent = each(
            "parent", lambda folder, i: rows_of_many.parent(folder, backend, draw, of_seeds, i)
        )
        if spent:
            say(f"{backend}  parent: the last process was gone after {max(spent):.2f} s at most")
    return failures


def _as_interrupted(folder: Path) -> None:
    """A run of 50 updates as one that was to make 96 and was killed: its config says so."""
    values = rows.read_json(folder / "result.json")
    (folder / "result.json").unlink()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("max_steps: 50", "max_steps: null"))
    assert values["steps"] == 50
    run_folder.write_json(folder / "result.json", {**values, "status": "interrupted"})


if __name__ == "__main__":
    sys.exit(main())
