# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host and guest side by side as an SVG picture, each passed-through device joined to itself.

In: two :class:`Column` s, boxes in boxes as lstopo draws them, with devices (:class:`Leaf`) by key. Out: a document of plain SVG 1.1 with a
style sheet, light or dark by ``prefers-color-scheme``; no script, no font, nothing that is loaded. Devices that come in the same order in
both columns stand on the same line, so that what joins them does not cross. All text is somebody else's: it is made printable, cut to its
box (by an estimate of its width, since there is no font to ask) and escaped; the whole of it is in the box's ``<title>``.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Iterator, NamedTuple, Optional, Sequence, Union

from pcinuma.printable import printable

# Light and dark: page, text, faint text, lines; then for each node's colour its stroke, the fill of a device, and that of the node's box.
_SCHEMES = {
    "light": ("#ffffff", "#1b1f24", "#59636e", "#b7bfc9", "#f6f8fa"),
    "dark": ("#0d1117", "#e6edf3", "#9aa4af", "#4a525c", "#161b22"),
}
_COLOURS = {
    "light": (("#0f6e84", "#d3eef4", "#f0f9fb"), ("#99358f", "#f6dcf3", "#fcf3fb"), ("#8a5a00", "#f8e6bd", "#fdf7e8"),
              ("#2c7a3f", "#d5f0da", "#f1faf3"), ("#2f5fc4", "#dbe6fb", "#f2f6fe"), ("#b23a32", "#fbdedb", "#fef4f3")),
    "dark": (("#4cc3dc", "#123f4a", "#0f2329"), ("#dd7fd2", "#4a2046", "#271626"), ("#dba53f", "#46340f", "#251e10"),
             ("#63c178", "#173f21", "#11231a"), ("#7ba4f5", "#1d3361", "#131d30"), ("#f0857c", "#542420", "#2a1816")),
}  # fmt: skip
_PLAIN = {"light": ("#59636e", "#eaeef2", "#f6f8fa"), "dark": ("#9aa4af", "#2a313a", "#161b22")}

_ROW, _GAP, _HEAD, _PAD, _TITLE = 24, 5, 22, 8, 34
_MARGIN, _BETWEEN = 16, 96
_MONO, _SANS = 7.3, 7.6  # the width of a character at 12 px, on the wide side


class Leaf(NamedTuple):
    """A device. ``mark``: its letter; ``name``: in a fixed-width font; ``text``: what it is; ``title``: all that is known of it."""

    key: str
    mark: str
    name: str
    text: str
    title: str
    colour: Optional[int]


@dataclass
class Box:
    """A box around others. ``colour``: the number of a node's colour, None for none."""

    label: str
    note: str = ""
    colour: Optional[int] = None
    inside: list[Union[Box, Leaf]] = field(default_factory=list)

    def box(self, label: str, note: str = "", colour: Optional[int] = None) -> Box:
        """The box inside that has this label: the last one, or a new one."""
        last = self.inside[-1] if self.inside else None
        if not isinstance(last, Box) or (last.label, last.note) != (label, note):
            last = Box(label, note, colour)
            self.inside.append(last)
        return last

    def leaves(self) -> Iterator[Leaf]:
        """The devices inside, from top to bottom."""
        for item in self.inside:
            if isinstance(item, Leaf):
                yield item
            else:
                yield from item.leaves()

    def depth(self) -> int:
        """How many boxes are around the innermost device, this one included."""
        return 1 + max((item.depth() if isinstance(item, Box) else 0 for item in self.inside), default=0)


class Column(NamedTuple):
    """One side: its heading, and the boxes in it; ``width`` of a device's box, in pixels."""

    heading: str
    boxes: Sequence[Box]
    width: float


class _Step(NamedTuple):
    """An edge of a box or a device on the way down a column."""

    kind: str  # open, close, leaf
    item: Union[Box, Leaf]
    depth: int


@dataclass
class _Placed:
    column: Column
    tops: dict[int, float] = field(default_factory=dict)
    bottoms: dict[int, float] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)
    end: float = 0.0

    @property
    def depth(self) -> int:
        return max((box.depth() for box in self.column.boxes), default=1)

    @property
    def width(self) -> float:
        return self.column.width + 2 * _PAD * self.depth


def picture(left: Column, right: Column, description: str) -> str:
    """The document."""
    one, other = _placed(left), _placed(right)
    _lay_out(one, other)
    width = 2 * _MARGIN + one.width + _BETWEEN + other.width
    height = max(one.end, other.end) + _MARGIN
    second = _MARGIN + one.width + _BETWEEN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">',
        f"<title>{_text(f'{left.heading} and {right.heading}')}</title>",
        f"<desc>{_text(description)}</desc>",
        f"<style>{_style()}</style>",
        f'<rect class="page" width="{width:g}" height="{height:g}"/>',
        *_column(one, _MARGIN),
        *_column(other, second),
        *_joins(one, other, second),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _placed(column: Column) -> _Placed:
    placed = _Placed(column)

    def walk(item: Union[Box, Leaf], depth: int) -> None:
        if isinstance(item, Leaf):
            placed.steps.append(_Step("leaf", item, depth))
            return
        placed.steps.append(_Step("open", item, depth))
        for inner in item.inside:
            walk(inner, depth + 1)
        placed.steps.append(_Step("close", item, depth))

    for box in column.boxes:
        walk(box, 0)
    return placed


def _lay_out(one: _Placed, other: _Placed) -> None:
    """Heights of everything; devices on the same line where both columns have them in the same order."""
    keys = [[step.item.key for step in side.steps if isinstance(step.item, Leaf)] for side in (one, other)]
    together = keys[0] == keys[1]
    sides = [(side, _runs(side.steps)) for side in (one, other)]
    ends = [_TITLE + _MARGIN * 1.0, _TITLE + _MARGIN * 1.0]
    for number in range(max(len(runs) for _, runs in sides)):
        needs = [_height(runs[number]) if number < len(runs) else 0.0 for _, runs in sides]
        last = [number + 1 >= len(runs) for _, runs in sides]
        target = max(end + need for end, need in zip(ends, needs)) if together and not any(last) else None
        for position, (side, runs) in enumerate(sides):
            if number < len(runs):
                slack = 0.0 if target is None else target - ends[position] - needs[position]
                ends[position] = _down(side, runs[number], ends[position], slack)
    one.end, other.end = ends


def _runs(steps: Sequence[_Step]) -> list[list[_Step]]:
    """The steps, cut before each device; the last run has none."""
    runs: list[list[_Step]] = [[]]
    for step in steps:
        if step.kind == "leaf":
            runs.append([step])
        else:
            runs[-1].append(step)
    return runs


_HEIGHTS = {"open": _GAP + _HEAD, "close": _PAD, "leaf": _GAP + _ROW}


def _height(run: Sequence[_Step]) -> float:
    return sum(_HEIGHTS[step.kind] for step in run)


def _down(side: _Placed, run: Sequence[_Step], y: float, slack: float) -> float:
    """Place a run from ``y`` down; ``slack`` goes between what ends and what begins in it, else to its end."""
    for step in run:
        if step.kind == "open" and slack:
            y, slack = y + slack, 0.0
        if step.kind == "open":
            side.tops[id(step.item)] = y + _GAP
        elif isinstance(step.item, Leaf):
            side.rows[step.item.key] = y + _GAP
        y += _HEIGHTS[step.kind]
        if step.kind == "close":
            side.bottoms[id(step.item)] = y
    return y + slack


def _column(side: _Placed, x: float) -> Iterator[str]:
    yield f'<text class="heading" x="{x:g}" y="{_MARGIN + 16}">{_text(_cut(side.column.heading, side.width, 8.6))}</text>'
    for step in side.steps:
        if step.kind == "open":
            assert isinstance(step.item, Box)
            yield from _box(side, step.item, x + _PAD * step.depth, side.width - 2 * _PAD * step.depth)
        elif isinstance(step.item, Leaf):
            yield from _leaf(step.item, x + _PAD * side.depth, side.rows[step.item.key], side.column.width)


def _box(side: _Placed, box: Box, x: float, width: float) -> Iterator[str]:
    top, bottom = side.tops[id(box)], side.bottoms[id(box)]
    yield f'<rect class="box {_class(box.colour)}" x="{x:g}" y="{top:g}" width="{width:g}" height="{bottom - top:g}" rx="4"/>'
    label = _cut(box.label, width - 2 * _PAD, _MONO)
    note = _cut(box.note, width - 2 * _PAD - _MONO * (len(label) + 2), _SANS)
    apart = ' dx="8"' if label else ""
    more = f'<tspan class="note"{apart}>{_text(note)}</tspan>' if note else ""
    yield f'<text class="label {_class(box.colour)}" x="{x + _PAD:g}" y="{top + 16:g}">{_text(label)}{more}</text>'


def _leaf(leaf: Leaf, x: float, y: float, width: float) -> Iterator[str]:
    colour = _class(leaf.colour)
    yield f'<g class="device"><title>{_text(leaf.title)}</title>'
    yield f'<rect class="leaf {colour}" x="{x:g}" y="{y:g}" width="{width:g}" height="{_ROW}" rx="3"/>'
    yield f'<text class="mark {colour}" x="{x + 8:g}" y="{y + 16:g}">{_text(leaf.mark)}</text>'
    name = _cut(leaf.name, width - 40, _MONO)
    yield f'<text class="name" x="{x + 32:g}" y="{y + 16:g}">{_text(name)}</text>'
    begin = 32 + _MONO * len(name) + 12
    text = _cut(leaf.text, width - begin - 8, _SANS)
    if text:
        yield f'<text class="what" x="{x + begin:g}" y="{y + 16:g}">{_text(text)}</text>'
    yield "</g>"


def _joins(one: _Placed, other: _Placed, second: float) -> Iterator[str]:
    begin = _MARGIN + one.width - _PAD * one.depth
    end = second + _PAD * other.depth
    for leaf in (leaf for box in one.column.boxes for leaf in box.leaves()):
        if leaf.key in other.rows:
            y, to = one.rows[leaf.key] + _ROW / 2, other.rows[leaf.key] + _ROW / 2
            bend = (end - begin) / 2
            path = f"M{begin:g} {y:g}C{begin + bend:g} {y:g} {end - bend:g} {to:g} {end:g} {to:g}"
            yield f'<path class="join {_class(leaf.colour)}" d="{path}"/>'


def _class(colour: Optional[int]) -> str:
    return "n" if colour is None else f"n{colour % len(_COLOURS['light'])}"


def _cut(text: str, width: float, each: float) -> str:
    text = printable(text)
    room = int(width / each)
    return text if len(text) <= room else text[: room - 1].rstrip() + "…" if room > 2 else ""


def _text(text: str) -> str:
    return html.escape(printable(text))


def _style() -> str:
    """The style sheet: what does not depend on the scheme, light, and dark where that is preferred."""
    fixed = (
        "text{font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}"
        ".heading{font-size:15px;font-weight:600}.label{font-weight:600}.note{font-weight:400}"
        ".mark,.name{font-family:ui-monospace,'SF Mono','DejaVu Sans Mono',monospace}.mark{font-weight:700}"
        ".box{stroke-width:1}.leaf{stroke-width:1}.join{fill:none;stroke-width:1.5}"
    )
    return f"{fixed}{_scheme('light')}@media (prefers-color-scheme:dark){{{_scheme('dark')}}}"


def _scheme(name: str) -> str:
    page, text, faint, line, inner = _SCHEMES[name]
    rules = f".page{{fill:{page}}}text{{fill:{text}}}.note,.what{{fill:{faint}}}.box.n{{fill:{inner};stroke:{line}}}"
    classes = [("n", _PLAIN[name]), *((f"n{number}", colours) for number, colours in enumerate(_COLOURS[name]))]
    for kind, (stroke, fill, ground) in classes:
        rules += f".leaf.{kind}{{fill:{fill};stroke:{stroke}}}.mark.{kind}{{fill:{stroke}}}.join.{kind}{{stroke:{stroke}}}"
        if kind != "n":
            rules += f".box.{kind}{{fill:{ground};stroke:{stroke}}}.label.{kind}{{fill:{stroke}}}"
    return rules
