"""Push a card and the files of a run or a multirun to a Hugging Face repository: push=OWNER/NAME.

The package huggingface_hub is the client. It finds the user's token (HF_TOKEN, or the file of
`hf auth login`) and the server (HF_ENDPOINT) by itself; neither is in a file or a message here.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import REPOSITORY
from runner.errors import ConfigError, RunError, one_line, show
from runner.report.jobs import inside
from runner.run import checkpoint
from runner.run.trackers import files
from runner.run.trackers.follower import without_secrets
from runner.text.console import quiet

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_OF_RUN = (
    *("config.yaml", "result.json", "data.json", "metrics.csv", "trace.csv", "certificate.json"),
    *("curves.png", "test.json", "model.*"),
)


def check(repository: Any) -> None:
    """Refuse a text that names no repository, and a missing package."""
    if not isinstance(repository, str) or not re.fullmatch(REPOSITORY, repository):
        raise ConfigError(f"push must be OWNER/NAME, a repository, got {show(repository)}")
    if find_spec("huggingface_hub") is None:
        raise ConfigError(
            "push needs the package huggingface_hub; install it with pip install "
            "'twinrun[huggingface]'"
        )


def push(folder: Path, repository: str, card: Mapping[str, Any]) -> None:
    """Push in one commit, and print where. The card is README.md. A repository that does not exist
    is made, a private one. Files of the repository with other names stay.

    Raises RunError if the server refuses or cannot be reached."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the package is imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import HfApi

    try:
        with quiet():
            num, address = _commit(HfApi(), folder, repository, card)
    except Exception as error:
        raise RunError(
            f"push={repository} failed: {type(error).__name__}: "
            f"{without_secrets(one_line(error))[:300]}; `hf auth login` or HF_TOKEN gives access"
        ) from None
    print(f"pushed   {num} files to {without_secrets(address)}")


def _commit(
    api: "HfApi", folder: Path, repository: str, card: Mapping[str, Any]
) -> tuple[int, str]:
    """Make the repository and the commit. Return the number of files and the address."""
    from huggingface_hub import CommitOperationAdd, ModelCardData

    about = ModelCardData(library_name="twinrun", tags=["twinrun", f"twinrun-{card['kind']}-card"])
    text = (folder / "card.md").read_text(encoding="utf-8")
    readme = f"---\n{about.to_yaml()}\n---\n\n{text}".encode()
    named: dict[str, Path | bytes] = {"card.json": folder / "card.json", **dict(_files(folder))}
    added = [CommitOperationAdd("README.md", readme)]
    for name, file in named.items():
        added.append(CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)))
    address = api.create_repo(repository, private=True, exist_ok=True)
    message = " ".join(card["claim"])[:200]
    api.create_commit(repository, added, commit_message=message)
    return len(added), str(address)


def _files(folder: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Yield the name and the path or content of each file besides the card: nothing of this
    machine, and no logs. `task=verify` needs no more."""
    if (folder / "result.json").is_file():
        yield from _of_run(folder, _OF_RUN)
        yield from _checkpoints(folder)
        return
    yield from files.of_multirun(folder)
    for job in inside(folder):
        found = _of_run(job, [name for name in _OF_RUN if name != "model.*"])
        yield from ((f"{job.name}/{name}", path) for name, path in found)


def _of_run(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        if path.is_symlink():
            raise ConfigError(f"push: {path} is a symbolic link, which is not pushed; remove it")
        inner = sorted(path.rglob("*")) if path.is_dir() else [path]  # a SavedModel is a folder
        yield from ((str(each.relative_to(folder)), each) for each in inner if each.is_file())


def _checkpoints(folder: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Yield the last and the best checkpoint. A repository has no links, so `last` and `best` are
    files that name a step, as on a file system without links."""
    for which in ("last", "best"):
        with suppress(checkpoint.MissingError):
            path = checkpoint.find(folder, which)
            yield f"checkpoints/{which}", path.name.encode()
            for file in sorted(each for each in path.iterdir() if each.is_file()):
                yield f"checkpoints/{path.name}/{file.name}", file
