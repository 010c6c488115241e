"""The two kinds of errors of a run, each shown to the user in one line."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class TwinrunError(Exception):
    """The base of all errors that this program raises for a user."""


class ConfigError(TwinrunError):
    """The config is wrong: exit status 2, nothing written, nothing trained."""


class RunError(TwinrunError):
    """The run failed: exit status 1, the traceback is in run.log.

    Attributes:
        folder: in Python, the folder of the run that failed; None if there is none.
    """

    def __init__(self, message: object = "", folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


# Keys that may keep a run from diverging
IF_DIVERGED = "a lower optimizer.lr or trainer.gradient_clip_norm may help"


# the out-of-memory errors of Python, NumPy and the frameworks
_MEMORY = ("OutOfMemoryError", "ResourceExhaustedError", "MemoryError", "ArrayMemoryError")


def is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    is_named = type(error).__name__ in _MEMORY
    return is_named or "can't allocate memory" in text or "bad_alloc" in text


@contextmanager
def memory_errors(
    what: str = "", advice: str = "end other programs or use a machine with more memory"
) -> Iterator[None]:
    """Turn an error for lack of memory in the block into a RunError: `what` ran out of memory, and
    what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory{what} ({type(error).__name__}); {advice}") from error


def closest(value: object, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that was probably meant, ignoring case: one with this prefix, or one
    with a similar spelling."""
    names, word = {name.lower(): name for name in allowed}, str(value).lower()
    with_prefix = [name for name in names if word and name.startswith(word)]
    similar = get_close_matches(word, names, n=1, cutoff=0.6)
    candidates = with_prefix + similar if len(word) > 2 else similar + with_prefix
    return names[candidates[0]] if candidates else None


def nearest(value: object, allowed: Iterable[str]) -> str:
    """Return `; did you mean adam?` if one of the allowed names is close to the value, else an
    empty string."""
    close = closest(value, allowed)
    return f"; did you mean {close}?" if close else ""


def show(value: object) -> str:
    """Format a value as on the command line, on one line of at most 60 characters. Empty text
    becomes "", control characters are escaped."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = printable(str(value)) or '""'
    return text if len(text) <= 60 else f"{text[:57]}..."


_MOST = 8  # names in one message


def listed(names: Sequence[str]) -> str:
    """List the first names and the number of the others."""
    first = [show(name) for name in names[:_MOST]]
    return ", ".join([*first, *([f"{len(names) - _MOST} more"] if len(names) > _MOST else [])])


# Python calls them not printable, but ordinary words need them: the joiners of Persian, of Indic
# scripts and of emoji, and the space between Japanese words
_IN_WORDS = "\u200c\u200d\u3000"


def show_path(path: object) -> str:
    """Show a whole path, so that it can be copied, up to 500 characters."""
    text = printable(str(path))
    return text if len(text) <= 500 else show(text)


def printable(text: str) -> str:
    """Escape characters that a terminal acts on or does not show: ESC becomes \\x1b, newline \\n.

    These are control characters, surrogates and line separators, the formats that turn the
    direction of reading (Unicode TR36, "bidirectional text spoofing"), and invisible spaces.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _IN_WORDS else c.encode("unicode_escape").decode()
        for c in text
    )


# ECMA-48, control sequences: colours and other styles of a terminal, which Keras's errors have
_STYLES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def one_line(text: object) -> str:
    """Join the lines of a text or an error to one printable line, without the codes of a
    terminal's styles."""
    return printable(" ".join(_STYLES.sub("", str(text)).split()))


def few_lines(text: str) -> str:
    """Format a message for the terminal: at most three lines of at most 2,000 characters."""
    lines = [printable(line) for line in text.split("\n")]
    lines = [*lines[:2], " ".join(lines[2:])] if len(lines) > 3 else lines
    return "\n".join(line if len(line) <= 2000 else f"{line[:1997]}..." for line in lines)
