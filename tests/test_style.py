"""The shape of the code, as CONTRIBUTING.md promises it."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.match_case)
_FEW_BRANCHES, _SHORT = 15, 45


def test_functions_are_short_and_branch_little() -> None:
    """Fewer than 45 lines besides the docstring, and 15 branches at most: if, for, while,
    except, case."""
    found = []
    for path in [*REPOSITORY.glob("runner/**/*.py"), *REPOSITORY.glob("backends/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[ast.get_docstring(node) is not None :]
                lines = node.end_lineno - first[0].lineno + 1 if first else 0  # type: ignore[operator]
                branches = sum(isinstance(inner, _BRANCHES) for inner in ast.walk(node))
                if lines >= _SHORT or branches > _FEW_BRANCHES:
                    found.append(f"{path.name} {node.name}: {lines} lines, {branches} branches")
    assert found == []


_NO_BEGINNING = re.compile(
    r"(Of|By|With|Without|What|Whether|Where|As|For|From|Before|After|Until|And|Its|The same)\b"
)


def test_docstrings_begin_with_a_verb_or_a_noun_phrase() -> None:
    found = []
    for path in [*REPOSITORY.glob("runner/**/*.py"), *REPOSITORY.glob("backends/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if _NO_BEGINNING.match(text):
                    found.append(f"{path.name} {node.name}: {text.splitlines()[0]}")
    assert found == []
