"""Measure how code is written: size, functions, comments and docstrings of sets of Python files.

The figures of `docs/architecture.md` come from it: `python docs/compare.py . FOLDER/*.py ...`. A folder stands for the
files in it, and several paths joined by commas for one set.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path


def _docstring(node: ast.AST) -> int:
    """Return the lines of a docstring, 0 if there is none."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return first.end_lineno - first.lineno + 1


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def measure(files: list[Path]) -> dict[str, str]:
    """Return what the table of `docs/architecture.md` says about a set of files.

    Args:
        files: Python files.

    Returns:
        Name of each figure and the figure; functions are counted without their docstrings.
    """
    texts = [file.read_text("utf-8") for file in files]
    trees = [ast.parse(text) for text in texts]
    lines = [len(text.splitlines()) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for tree in trees for node in _functions(tree)]
    lengths = [node.end_lineno - node.lineno + 1 - _docstring(node) for node in functions]
    public = [_docstring(node) > 0 for node in functions if not node.name.startswith("_")]
    tokens = [token for text in texts for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        "files": f"{len(files)}",
        "lines": f"{sum(lines):,}",
        "longest file": f"{max(lines)}",
        "median function": f"{statistics.median(lengths):g} lines",
        "longest function": f"{max(lengths)} lines",
        "public functions with a docstring": f"{sum(public) / len(public):.0%}",
        "docstrings": f"{sum(_docstring(node) for node in nodes if isinstance(node, documented)) / sum(lines):.1%}",
        "comments": f"{sum(token.type == tokenize.COMMENT for token in tokens) / sum(lines):.1%}",
        "`raise`": f"{sum(isinstance(node, ast.Raise) for node in nodes)}",
        "`assert`": f"{sum(isinstance(node, ast.Assert) for node in nodes)}",
    }


def main(sets: list[str]) -> int:
    """Print one column for each set of files, as a Markdown table."""
    columns = []
    for paths in sets:
        found = [sorted(path.glob("*.py")) if path.is_dir() else [path] for path in map(Path, paths.split(","))]
        columns.append(measure([file for files in found for file in files]))
    for name in columns[0] if columns else ():
        sys.stdout.write(f"| {name} | {' | '.join(column[name] for column in columns)} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
