"""Files that trackers get on request: tracker.artifacts."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from runner.run import checkpoint

_OF_RUN = {"curves": "curves.png", "certificate": "certificate.json"}
_OF_MULTIRUN = ("comparison*", "answer*.json", "search.json", "search.png", "trials.csv")


def of_run(folder: Path, artifacts: Collection[str]) -> Sequence[tuple[str, Path]]:
    """Return the name and the path of each file of a run that has ended. A run that had no epoch
    has no curves.png, and one whose metric was never finite has no best checkpoint."""
    found = [(name, folder / name) for kind, name in _OF_RUN.items() if kind in artifacts]
    if "checkpoints" in artifacts:
        for which in ("last", "best"):
            with suppress(checkpoint.MissingError):
                paths = sorted(checkpoint.find(folder, which).iterdir())
                found += [(f"checkpoints/{which}/{path.name}", path) for path in paths]
    return [(name, path) for name, path in found if path.is_file()]


def of_multirun(folder: Path) -> Sequence[tuple[str, Path]]:
    """Return the name and the path of each file of a multirun's comparison."""
    paths = sorted(path for pattern in _OF_MULTIRUN for path in folder.glob(pattern))
    return [(path.name, path) for path in paths if path.is_file()]
