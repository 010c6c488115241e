"""The shape of the code, as CONTRIBUTING.md promises it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.match_case)
_FEW_BRANCHES, _SHORT = 15, 45


_PRAGMA = re.compile(r"  # (type: ignore|noqa)\b.*")


def _modules(*rooms: str) -> Iterator[tuple[Path, ast.Module]]:
    for room in rooms:
        for path in (REPOSITORY / room).rglob("*.py"):
            yield path.relative_to(REPOSITORY), ast.parse(path.read_text(encoding="utf-8"))


def test_functions_are_short_and_branch_little() -> None:
    """Fewer than 45 lines besides the docstring, and 15 branches at most: if, for, while,
    except, case."""
    found = []
    for path, module in _modules("runner", "backends"):
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                first = node.body[ast.get_docstring(node) is not None :]
                lines = (node.end_lineno or 0) - first[0].lineno + 1 if first else 0
                branches = sum(isinstance(inner, _BRANCHES) for inner in ast.walk(node))
                if lines >= _SHORT or branches > _FEW_BRANCHES:
                    found.append(f"{path} {node.name}: {lines} lines, {branches} branches")
    assert found == []


def test_lines_have_at_most_100_columns() -> None:
    """Without what is said to a linter at their end, of which ruff takes no account either."""
    found = []
    for room in ("runner", "backends", "benchmarks", "docs", "tests"):
        for path in (REPOSITORY / room).rglob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if len(_PRAGMA.sub("", line)) > 100:
                    found.append(f"{path}:{number}")
    assert found == []


_NO_BEGINNING = re.compile(
    r"(Of|By|With|Without|What|Which|Whether|Where|When|How|As|For|From|Before|After|Until|And|Its"
    r"|The same)\b"
)


def test_docstrings_begin_with_a_verb_or_a_noun_phrase() -> None:
    found = []
    for path, module in _modules("runner", "backends", "benchmarks"):
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if _NO_BEGINNING.match(text):
                    found.append(f"{path} {getattr(node, 'name', '')}: {text.splitlines()[0]}")
    assert found == []
