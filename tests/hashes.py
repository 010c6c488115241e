"""Hashes of a fixed set of runs, for a change that should not change numbers.

    python -m tests.hashes before.json      # on the commit before
    python -m tests.hashes after.json --against before.json

Every optimizer, model and precision on both backends, schedules with and without a state, an
extended run, and one that the other backend finishes. With --against it prints the runs whose
numbers changed, and exits with 1 if there are any.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.command_line import OTHER

_SHORT = ("trainer.max_steps=30", "trainer.batch_size=100", "device=cpu")
_OPTIMIZERS = (
    "adadelta,adafactor,adagrad,adam,ademamix,adamax,adamw,lamb,lars,lion,muon,nadam,prodigy,"
    "rmsprop,schedule_free_adamw,schedule_free_sgd,sgd"
)
_SWEEPS: Sequence[Sequence[str]] = (
    (
        f"optimizer={_OPTIMIZERS}",
        "trainer.precision=float32,float64,bf16-mixed,exact",
        "schedule=cosine",
    ),
    (
        "model=linear,cnn,resnet,transformer",
        "trainer.precision=float32,float64,bf16-mixed,exact",
        "data.images=true",
    ),
    (
        "schedule=constant,wsd,plateau,one_cycle",
        "data=digits,diabetes",
        "trainer.gradient_clip_norm=0.5",
    ),
    (
        "trainer.accumulate_grad_batches=1,3",
        "trainer.steps_per_call=1,7",
        "optimizer=adamw",
        "seed=1",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hashes", description="Hashes of a fixed set of runs."
    )
    parser.add_argument("file", type=Path, help="where to write them, as JSON")
    parser.add_argument("--against", type=Path, metavar="FILE", help="hashes of another commit")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = dict(_hashes(Path(folder)))
    arguments.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    changed = sorted(
        name for name in before.keys() | found.keys() if before.get(name) != found.get(name)
    )
    print(f"{len(found)} runs, {len(changed)} with other numbers", *changed, sep="\n")
    return bool(changed)


def _hashes(root: Path) -> Iterator[tuple[str, str]]:
    """The run's name and the hash of its weights."""
    for backend in OTHER:
        for number, sweep in enumerate(_SWEEPS):
            folder = root / f"{backend}_{number}"
            _run("-m", f"backend={backend}", f"output.root={folder}", *_SHORT, *sweep)
            for path in sorted(folder.glob("multiruns/*/*/result.json")):
                yield f"{backend} {path.parent.name}", _of(path.parent)
    for backend, other in OTHER.items():
        for name, second in (("extended", backend), ("finished by the other", other)):
            folder = root / f"{backend}_{second}"
            _run(
                f"backend={backend}",
                f"output.root={folder}",
                *_SHORT,
                "schedule=exponential",
                "schedule.decay_steps=10",
                "optimizer=adamw",
            )
            (path,) = folder.glob("runs/*")
            _run(f"resume={path}", "trainer.max_steps=45", f"backend={second}")
            yield f"{backend} {name}", _of(path)


def _of(path: Path) -> str:
    return json.loads((path / "result.json").read_text(encoding="utf-8"))["weights_sha256"]


def _run(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "runner", *arguments], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    sys.exit(main())
