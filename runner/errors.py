"""The two ways a run can fail, each told to the user in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(Exception):
    """The config is wrong: exit status 2, nothing written, nothing trained."""


class RunError(Exception):
    """The run failed: exit status 1, the traceback is in run.log."""


def closest(found: object, allowed: Iterable[str]) -> str | None:
    """The allowed name that was probably meant: one that begins so, else one spelled alike; letter
    case aside."""
    names, word = {name.lower(): name for name in allowed}, str(found).lower()
    begun = [name for name in names if word and name.startswith(word)]
    alike = get_close_matches(word, names, n=1, cutoff=0.6)
    likely = begun + alike if len(word) > 2 else alike + begun
    return names[likely[0]] if likely else None


def nearest(found: object, allowed: Iterable[str]) -> str:
    """`; did you mean adam?` if one of the allowed names is close to what was found, else
    nothing."""
    close = closest(found, allowed)
    return f"; did you mean {close}?" if close else ""


def show(found: object) -> str:
    """A value as the command line spells it, on one line of at most 60 characters; an empty text
    is "", a control character its escape."""
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    text = printable(str(found)) or '""'
    return text if len(text) <= 60 else f"{text[:57]}..."


# Not printable for Python, and part of ordinary words: the joiners of Persian, of Indic scripts and
# of emoji, and the space between Japanese words
_OF_WORDS = "\u200c\u200d\u3000"


def show_path(path: object) -> str:
    """A path whole, so that it can be copied, unless it is of no use."""
    text = printable(str(path))
    return text if len(text) <= 500 else show(text)


def printable(text: str) -> str:
    """Escape what a terminal acts on or shows nothing of: ESC becomes \\x1b, a newline \\n.

    These are control characters, surrogates and line separators, the formats that turn the
    direction of reading (Unicode TR36, "bidirectional text spoofing"), and invisible spaces.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _OF_WORDS else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: object) -> str:
    """A text or an error's text of several lines, as one printable line."""
    return printable(" ".join(str(text).split()))


def few_lines(text: str) -> str:
    """A message as the terminal gets it: at most three lines, each of a bounded length."""
    lines = [printable(line) for line in text.split("\n")]
    lines = [*lines[:2], " ".join(lines[2:])] if len(lines) > 3 else lines
    return "\n".join(line if len(line) <= 2000 else f"{line[:1997]}..." for line in lines)
