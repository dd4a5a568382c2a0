# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports go one way: CONTRIBUTING.md lists the layers of the package, and nothing imports from its own layer or from one above."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

import pytest

from tests.waiting import CHECKOUT

LAYER = re.compile(r"^ {4}(\d+) +(\S.*?)(?:  +.*)?$", re.MULTILINE)
"""In CONTRIBUTING.md: a number, and what lives in that layer, a blank between two names; then what it is, further on."""


def imports(folder: Path, package: str) -> dict[str, set[str]]:
    """Module -> modules of ``package``, in ``folder``, that it imports, wherever in its file."""
    files = sorted(folder.rglob("*.py"))
    modules = {module_of(file, folder, package) for file in files}
    found: dict[str, set[str]] = {}
    for file in files:
        names = set(imported(ast.parse(file.read_text(encoding="utf-8"))))
        known = {name if name in modules else name.rpartition(".")[0] for name in names}
        found[module_of(file, folder, package)] = known & modules
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(file: Path, folder: Path, package: str) -> str:
    parts = (package, *file.relative_to(folder).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def between_parts(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between the parts of the package: its folders, and the modules that are in none."""
    found: dict[str, set[str]] = {}
    for module, theirs in modules.items():
        here = part_of(module)
        found.setdefault(here, set()).update(part for part in map(part_of, theirs) if part not in (here, ""))
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def circle(arrows: Mapping[str, set[str]]) -> Optional[list[str]]:
    """A way that comes back to where it began; None if there is none."""
    done: set[str] = set()

    def walk(here: str, way: list[str]) -> Optional[list[str]]:
        if here in way:
            return [*way[way.index(here) :], here]
        if here in done:
            return None
        for there in sorted(arrows.get(here, ())):
            found = walk(there, [*way, here])
            if found is not None:
                return found
        done.add(here)
        return None

    for start in sorted(arrows):
        found = walk(start, [])
        if found is not None:
            return found
    return None


def upward(arrows: Mapping[str, set[str]], layers: Mapping[str, int]) -> list[str]:
    """The arrows that do not go down, and the parts that are in no layer."""
    missing = sorted(part for part in arrows if part and part not in layers)
    found = [f"CONTRIBUTING.md does not say in which layer {part} is" for part in missing]
    for here, theirs in sorted(arrows.items()):
        for there in sorted(theirs - set(missing)):
            if here in layers and layers[there] <= layers[here]:
                found.append(f"{here} imports {there}, which is not below it")
    return found


def layers() -> dict[str, int]:
    """Part -> the number of its layer, the top one being 1."""
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {name: int(number) for number, names in LAYER.findall(text) for name in names.split()}


@pytest.fixture(scope="module")
def package() -> dict[str, set[str]]:
    return imports(CHECKOUT / "pcinuma", "pcinuma")


def test_no_module_imports_itself_by_way_of_others(package: dict[str, set[str]]) -> None:
    assert circle({module: theirs - {"pcinuma"} for module, theirs in package.items()}) is None


def test_each_part_imports_only_what_is_in_the_layers_below_it(package: dict[str, set[str]]) -> None:
    assert upward(between_parts(package), layers()) == []


@pytest.mark.parametrize(
    ("files", "way"),
    [
        ({"a/one.py": "from p.b import two", "b/two.py": "from p.a.one import x"}, ["p.a.one", "p.b.two", "p.a.one"]),
        ({"a/one.py": "import p.b.two", "b/two.py": "def f():\n    import p.a.one"}, ["p.a.one", "p.b.two", "p.a.one"]),
        ({"a.py": "from p import b", "b.py": "from p import c", "c.py": "from p.a import x"}, ["p.a", "p.b", "p.c", "p.a"]),
        ({"a/one.py": "from p.b import two", "b/two.py": "import os"}, None),
    ],
    ids=["from", "within a function", "of three", "none"],
)
def test_a_planted_circle_is_found(tmp_path: Path, files: Mapping[str, str], way: Optional[list[str]]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert circle(imports(tmp_path, "p")) == way


def test_an_arrow_that_goes_up_or_sideways_is_found_and_so_is_what_is_in_no_layer() -> None:
    arrows = {"top": {"low"}, "low": {"top"}, "beside": {"low", "new"}, "new": set(), "": {"top"}}
    assert upward(arrows, {"top": 1, "low": 2, "beside": 2}) == [
        "CONTRIBUTING.md does not say in which layer new is",
        "beside imports low, which is not below it",
        "low imports top, which is not below it",
    ]
