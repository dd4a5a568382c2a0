# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands draw with: colours, box characters, trees, tables, columns side by side.

A :class:`Screen` knows what its stream can show: colours only on a terminal and never under ``NO_COLOR`` (https://no-color.org), box
characters only where the locale is UTF-8. Everything returns lines of text; a command prints them once, at its end.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence, TextIO

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_COLOURS = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip
_MARKS = {"arrow": ("→", "->"), "dot": ("·", "-"), "dots": ("…", "..."), "leader": ("┄", ".")}
_LEGIBLE = 20  # columns; what is narrower is better left to the terminal to wrap
PALETTE = ("cyan", "magenta", "yellow", "green", "blue", "red")
"""Colours for things that are told apart by number, such as NUMA nodes."""


@dataclass(frozen=True)
class Row:
    """A path in a tree to draw, by its labels from the root down; rows with the same beginning share it.

    A tab in a label begins a column that is aligned over the whole tree. ``key`` says what the row is about, for ``beside``.
    """

    labels: tuple[str, ...]
    key: Optional[str] = None


@dataclass(frozen=True)
class Line:
    """A drawn line of a tree. ``rail`` is what a filler line directly above it must show for the tree to stay connected."""

    text: str
    key: Optional[str] = None
    rail: str = ""


@dataclass(frozen=True)
class Screen:
    """What the output can show. ``width``: columns of a terminal; None for a file or a pipe, which take lines of any length."""

    colour: bool = False
    unicode: bool = False
    width: Optional[int] = None

    @classmethod
    def of(cls, stream: Optional[TextIO] = None, environment: Optional[Mapping[str, str]] = None) -> Screen:
        """The screen behind ``stream`` (standard output by default)."""
        stream = stream or sys.stdout
        environment = os.environ if environment is None else environment
        terminal = stream.isatty()
        colour = terminal and not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"
        columns = shutil.get_terminal_size((160, 24)).columns if terminal else None
        return cls(colour, locale_is_utf8(environment), columns)

    def paint(self, text: str, *colours: str) -> str:
        """``text`` in the colours, where there are any."""
        codes = ";".join(_COLOURS[colour] for colour in colours)
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour and codes and text else text

    def mark(self, name: str) -> str:
        """A sign by its name: arrow, dot, dots, leader."""
        return _MARKS[name][0 if self.unicode else 1]

    def table(self, rows: Sequence[Sequence[str]], header: Optional[Sequence[str]] = None, indent: str = "") -> list[str]:
        """The rows in aligned columns, the header in bold. On a terminal a last column of plain text is cut where the line ends."""
        whole = [*([header] if header else []), *rows]
        if not whole:
            return []
        widths = [max(visible(row[column]) for row in whole) for column in range(len(whole[0]))]
        room = None if self.width is None else self.width - len(indent) - sum(widths[:-1]) - 2 * (len(widths) - 1)
        lines = []
        for row in whole:
            last = row[-1] if room is None or room < _LEGIBLE or "\x1b" in row[-1] else self._fit(row[-1], room)
            lines.append((indent + "  ".join([*map(pad, row[:-1], widths), last])).rstrip())
        return [self.paint(lines[0], "bold"), *lines[1:]] if header else lines

    def wrap(self, text: str, indent: str = "") -> list[str]:
        """The plain text in lines of a terminal's width, the second and further ones indented a little more."""
        if self.width is None or self.width - len(indent) < _LEGIBLE:
            return [indent + text]
        return textwrap.wrap(
            text, self.width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False, break_on_hyphens=False
        )

    def _fit(self, text: str, width: int) -> str:
        return text if len(text) <= width else text[: width - len(self.mark("dots"))].rstrip() + self.mark("dots")

    def tree(self, rows: Sequence[Row]) -> list[Line]:
        """The rows as trees, each root at the margin, in the order in which the rows first name things."""
        tee, corner, rail = ("├─ ", "└─ ", "│  ") if self.unicode else ("|- ", "`- ", "|  ")
        children: dict[tuple[str, ...], list[str]] = {}
        keys: dict[tuple[str, ...], Optional[str]] = {}
        for row in rows:
            for depth, label in enumerate(row.labels):
                siblings = children.setdefault(row.labels[:depth], [])
                if label not in siblings:
                    siblings.append(label)
            keys[row.labels] = row.key
        lines: list[Line] = []

        def draw(path: tuple[str, ...], margin: str) -> None:
            labels = children.get(path, [])
            for position, label in enumerate(labels):
                last, here = position + 1 == len(labels), (*path, label)
                if path:
                    lines.append(Line(margin + (corner if last else tee) + label, keys.get(here), margin + rail.rstrip()))
                    draw(here, margin + ("   " if last else rail))
                else:
                    lines.append(Line(label, keys.get(here)))
                    draw(here, "")

        draw((), "")
        return _align(lines)

    def beside(self, left: Sequence[Line], right: Sequence[Line]) -> list[str]:
        """Two trees in two columns, with lines of the same key on the same row wherever the order allows it."""
        rows: list[tuple[str, str, bool]] = []
        done = (0, 0)
        for to in [*_matches(left, right), (len(left), len(right))]:
            tall = max(to[0] - done[0], to[1] - done[1])
            columns = []
            for side, start, end in ((left, done[0], to[0]), (right, done[1], to[1])):
                filler = [side[end].rail if end < len(side) else ""] * (tall - (end - start))
                columns.append([line.text for line in side[start:end]] + filler)
            rows += [(one, other, False) for one, other in zip(*columns)]
            if to[0] < len(left) and to[1] < len(right):
                rows.append((left[to[0]].text, right[to[1]].text, True))
            done = (to[0] + 1, to[1] + 1)
        width = max((visible(one) for one, _, _ in rows), default=0) + 2
        lines = []
        for one, other, matched in rows:
            gap = width - visible(one)
            fill = f" {self.paint(self.mark('leader') * gap, 'dim')}  " if matched else " " * (gap + 3)
            lines.append((one + fill + other).rstrip())
        return lines


def locale_is_utf8(environment: Mapping[str, str]) -> bool:
    """Whether the user's locale says UTF-8.

    Python turns the C locale into C.UTF-8 for itself (PEP 538, PEP 540), so neither the stream's encoding nor a lone
    ``LC_CTYPE=C.UTF-8`` says anything about the terminal.
    """
    ctype, lang = environment.get("LC_CTYPE", ""), environment.get("LANG", "")
    if ctype == "C.UTF-8" and lang in ("", "C", "POSIX"):
        ctype = ""
    name = environment.get("LC_ALL") or ctype or lang
    return name.upper().replace("-", "").endswith("UTF8")


def visible(text: str) -> int:
    """The number of columns that ``text`` takes, colours not counted."""
    return len(_ESCAPE.sub("", text))


def pad(text: str, width: int) -> str:
    """``text`` filled up with blanks to ``width`` columns."""
    return text + " " * (width - visible(text))


def _align(lines: Sequence[Line]) -> list[Line]:
    """The lines with their tabs replaced by blanks, so that what follows a tab begins in the same column everywhere."""
    parts = [line.text.split("\t") for line in lines]
    widths: dict[int, int] = {}
    for texts in parts:
        for column, text in enumerate(texts[:-1]):
            widths[column] = max(widths.get(column, 0), visible(text))
    aligned = []
    for line, texts in zip(lines, parts):
        cells = [pad(text, widths[column]) for column, text in enumerate(texts[:-1])]
        aligned.append(Line("  ".join([*cells, texts[-1]]), line.key, line.rail))
    return aligned


def _matches(left: Sequence[Line], right: Sequence[Line]) -> list[tuple[int, int]]:
    """Pairs of line numbers with equal keys: the longest run of them that is in the same order on both sides."""
    lefts = [(number, line.key) for number, line in enumerate(left) if line.key is not None]
    rights = [(number, line.key) for number, line in enumerate(right) if line.key is not None]
    best = [[0] * (len(rights) + 1) for _ in range(len(lefts) + 1)]
    for i in range(len(lefts) - 1, -1, -1):
        for j in range(len(rights) - 1, -1, -1):
            same = lefts[i][1] == rights[j][1]
            best[i][j] = best[i + 1][j + 1] + 1 if same else max(best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(lefts) and j < len(rights):
        if lefts[i][1] == rights[j][1]:
            pairs.append((lefts[i][0], rights[j][0]))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
