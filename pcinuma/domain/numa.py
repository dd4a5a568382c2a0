# SPDX-License-Identifier: LGPL-2.1-or-later
"""A domain's NUMA cells, and what binds them to host nodes: ``<memnode>``, ``<numatune><memory>``, ``<vcpupin>``, ``<vcpu cpuset>``.

A value that means nothing does not raise: the first one's sentence is the ``problem``, and the rest is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.domain.address import number, shortened
from pcinuma.domain.xml import Parts, child
from pcinuma.errors import DomainError
from pcinuma.ranges import HIGHEST, Ranges, parse_spans


class Numa(NamedTuple):
    """The fields of the same names of a :class:`~pcinuma.domain.model.Domain`."""

    cells: Mapping[int, Ranges]
    memnodes: tuple[tuple[int, Ranges], ...]
    memory: Optional[Ranges]
    pins: tuple[tuple[int, Ranges], ...]
    problem: Optional[str]
    warnings: tuple[str, ...]


def read_numa(top: Parts) -> Numa:
    """Read a domain; ``top``: its children by name."""
    return _Reader(top).read()


class _Reader:
    def __init__(self, top: Parts) -> None:
        self.top = top
        self.problem: Optional[str] = None
        self.warnings: list[str] = []

    def read(self) -> Numa:
        cells = self._cells()
        memnodes, memory, pins = self._memnodes(cells), self._memory(), self._pins(cells)
        return Numa(cells, memnodes, memory, pins, self.problem, tuple(self.warnings))

    def _under(self, first: str, *tags: str) -> Iterator[etree._Element]:
        """The elements on the path ``first/tags`` from the root: ``iterfind`` for paths whose inner elements are there once."""
        *inner, last = tags
        element = self.top.get(first)
        for tag in inner:
            element = None if element is None else child(element, tag)
        return iter(()) if element is None else element.iterchildren(last)

    def _trouble(self, error: DomainError) -> None:
        self.problem = self.problem or error.sentence()

    def _cells(self) -> dict[int, Ranges]:
        cells: dict[int, Ranges] = {}
        for position, element in enumerate(self._under("cpu", "numa", "cell")):
            try:
                told = element.get("id")
                cell = position if told is None else number(told, "<cell>: id")
                if cell in cells:
                    raise DomainError("appears twice", subject=f"guest cell {cell}")
                cells[cell] = _set(element.get("cpus", ""), f"guest cell {cell}: cpus")
            except DomainError as error:
                self._trouble(error)
        return cells

    def _memnodes(self, cells: Mapping[int, Ranges]) -> tuple[tuple[int, Ranges], ...]:
        nodes: list[tuple[int, Ranges]] = []
        for element in self._under("numatune", "memnode"):
            try:
                cell = number(element.get("cellid"), "<memnode>: cellid")
                nodeset = _set(element.get("nodeset", ""), f"<memnode cellid='{cell}'>: nodeset")
            except DomainError as error:
                self._trouble(error)
                continue
            if cell in cells:
                nodes.append((cell, nodeset))
            else:
                self.warnings.append(f"<memnode cellid='{cell}'> is for no guest cell")
        return tuple(nodes)

    def _memory(self) -> Optional[Ranges]:
        """The nodeset of ``<numatune><memory>``. Placement ``auto`` is numad's, which nobody knows before the start."""
        memory = next(self._under("numatune", "memory"), None)
        if memory is None or memory.get("placement") == "auto" or "nodeset" not in memory.attrib:
            return None
        return self._checked(memory.get("nodeset", ""), "<numatune><memory>: nodeset")

    def _pins(self, cells: Mapping[int, Ranges]) -> tuple[tuple[int, Ranges], ...]:
        """By ``<vcpupin>``, and for the vCPUs that have none by ``<vcpu cpuset>``."""
        if not cells:
            return ()
        spans = sorted([(span, cell) for cell, vcpus in cells.items() for span in vcpus.spans])
        for ((_, last), cell), ((first, _), other) in zip(spans, spans[1:]):
            if first <= last:
                self._trouble(DomainError(f"shares vCPU {first} with guest cell {cell}", subject=f"guest cell {other}"))
                return ()
        unpinned = {cell: len(vcpus) for cell, vcpus in cells.items()}
        pins: list[tuple[int, Ranges]] = []
        seen: set[int] = set()
        for element in self._under("cputune", "vcpupin"):
            try:
                vcpu = number(element.get("vcpu"), "<vcpupin>: vcpu")
                cpus = _set(element.get("cpuset", ""), f"<vcpupin vcpu='{vcpu}'>: cpuset")
            except DomainError as error:
                self._trouble(error)
                continue
            at = bisect_right(spans, ((vcpu, HIGHEST + 1), 0)) - 1
            if at < 0 or vcpu > spans[at][0][1]:
                self.warnings.append(f"<vcpupin vcpu='{vcpu}'>: this vCPU is in no guest cell")
                continue
            cell = spans[at][1]
            pins.append((cell, cpus))
            unpinned[cell] -= vcpu not in seen
            seen.add(vcpu)
        vcpu_element = self.top.get("vcpu")
        if vcpu_element is not None and vcpu_element.get("placement") != "auto" and vcpu_element.get("cpuset") is not None:
            cpuset = self._checked(vcpu_element.get("cpuset", ""), "<vcpu>: cpuset")
            pins += [(cell, cpuset) for cell, count in unpinned.items() if count and cpuset]
        return tuple(pins)

    def _checked(self, text: str, what: str) -> Optional[Ranges]:
        try:
            return _set(text, what)
        except DomainError as error:
            self._trouble(error)
            return None


def _set(text: str, what: str) -> Ranges:
    numbers = parse_spans(text)
    if numbers is None:
        raise DomainError(f"{shortened(text)} is no list of numbers", subject=what)
    return numbers
