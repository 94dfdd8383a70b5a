"""A function fits on a screen, a file in 300 lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 300
FOLDERS = ("sharding", "vsr_dist", "sweeps", "benchmarks", "tests")


def long_functions(text):
    """(Name, lines with decorators and docstring) of each function over the limit."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = node.end_lineno - first + 1
            if lines > MAX_FUNCTION_LINES:
                yield node.name, lines


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_and_no_file_is_too_long(folder):
    faults = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        num_lines = len(text.splitlines())
        if num_lines > MAX_FILE_LINES:
            faults.append(f"{path.relative_to(ROOT)}: {num_lines} lines")
        faults += [f"{path.relative_to(ROOT)}: {name} has {lines} lines" for name, lines in long_functions(text)]
    assert not faults, "\n".join(faults)


def test_the_measure_counts_docstring_and_decorators():
    body = "\n".join(f"    x = {n}" for n in range(MAX_FUNCTION_LINES - 2))
    assert list(long_functions(f'@wraps\ndef f():\n    """Doc."""\n{body}\n')) == [("f", MAX_FUNCTION_LINES + 1)]
    assert not list(long_functions(f'def f():\n    """Doc."""\n{body}\n'))
