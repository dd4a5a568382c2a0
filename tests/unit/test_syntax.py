# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for the sources as a whole: Python 3.9, the oldest that the package runs on, can read them, and no test is forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.waiting import CHECKOUT

SOURCES = sorted((CHECKOUT / "pcinuma").rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_a_source_is_python_3_9(source: Path) -> None:
    ast.parse(source.read_text(), str(source), feature_version=(3, 9))


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_annotations_are_never_evaluated(source: Path) -> None:
    """Without the future import, ``int | None`` and the like would fail on 3.9 at run time."""
    tree = ast.parse(source.read_text())
    annotated = any(isinstance(node, (ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(tree))
    assert not annotated or any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)


def test_every_test_is_in_a_part_that_the_test_command_runs() -> None:
    folders = {"/".join(file.relative_to(CHECKOUT).parts[:2]) for file in (CHECKOUT / "tests").rglob("test_*.py")}
    (line,) = (line for line in (CHECKOUT / "tests/run").read_text().splitlines() if line.startswith("declare -A FOLDERS="))
    assert folders <= set(re.findall(r"tests/\w+", line))
