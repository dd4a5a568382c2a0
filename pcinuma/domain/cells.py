# SPDX-License-Identifier: LGPL-2.1-or-later
"""NUMA cells in a domain's XML: written where there were none, recognised later, taken out again.

Written are ``<cpu><numa>``, a ``<memnode>`` for each cell and a ``<vcpupin>`` for each vCPU without a pin, each where libvirt formats it.
Where the memnodes are restrictive, ``<numatune><memory>`` is too: libvirt applies that mode to vCPU threads by this element alone, and
newer ones refuse memnodes of that mode without it. pcinuma's metadata say what was added (:class:`MadeCells`). Nothing else changes, and
taking it out gives back what was there, byte for byte, from the text that was written as from what libvirt made of it.

Cells are pcinuma's as long as they are as written. Cells that somebody changed are the owner's: they stay, and only the record goes. A pin
that somebody changed is the owner's likewise. Where something else in the domain came to need the cells (memory devices, another
controller's ``<node>``), they cannot be taken out; a sentence says what.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence

from lxml import etree

from pcinuma.domain.flat import in_kib
from pcinuma.domain.metadata import write_cells
from pcinuma.domain.xml import Document, append, child, insert_after, insert_first, parts_of, remove, space_before
from pcinuma.errors import DomainError
from pcinuma.model import GuestCell, MadeCells
from pcinuma.plan import Proposal
from pcinuma.ranges import Ranges, format_ranges, parse_spans
from pcinuma.settings import MemoryMode

_IN_ORDER = (
    "name", "uuid", "genid", "title", "description", "metadata", "maxMemory", "memory", "currentMemory", "blkiotune", "memtune",
    "memoryBacking", "vcpu", "vcpus", "iothreads", "iothreadids", "defaultiothread", "cputune", "numatune", "resource", "idmap", "sysinfo",
    "bootloader", "bootloader_args", "os", "features", "cpu",
)  # fmt: skip
"""How libvirt formats a domain (``virDomainDefFormatInternalSetRootName``), as far as it matters here."""
_BEFORE_PINS = (
    "shares", "period", "quota", "global_period", "global_quota", "emulator_period", "emulator_quota", "iothread_period", "iothread_quota",
)  # fmt: skip
_CELL = frozenset(("id", "cpus", "memory", "unit"))
_CONTAINERS = ("cputune", "numatune", "cpu")


def write_proposal(document: Document, proposal: Proposal) -> MadeCells:
    """Put the cells of ``proposal`` into a domain that has none, and the record of it into its metadata; return that.

    What is written is text until the document is serialised: it cannot be read from it before.
    """
    root = document.root
    made = [tag for tag in _CONTAINERS if child(root, tag) is None and (proposal.pins or tag != "cputune")]
    _write_numa(document, proposal, made)  # from the end on: behind an element that is only text yet nothing finds its place
    tuning = [f"<memnode cellid='{c.number}' mode='{proposal.mode.value}' nodeset='{c.node}'/>" for c in proposal.cells]
    numatune = child(root, "numatune")
    if proposal.mode is MemoryMode.RESTRICTIVE and (numatune is None or child(numatune, "memory") is None):
        made.append("memory")
        tuning.insert(0, f"<memory mode='{proposal.mode.value}' nodeset='{format_ranges(_nodes(proposal.cells))}'/>")
    if numatune is None:
        _write_new(document, "numatune", lambda line: line.join(["", *tuning]))
    else:
        _write_into(document, numatune, lambda line: line.join(tuning))
    spelled = {cpus: format_ranges(cpus) for cpus in {cpus for _, cpus in proposal.pins}}
    pins = [(vcpu, f"<vcpupin vcpu='{vcpu}' cpuset='{spelled[cpus]}'/>") for vcpu, cpus in proposal.pins]
    if "cputune" in made:
        _write_new(document, "cputune", lambda line: line.join(["", *[text for _, text in pins]]))
    elif pins:
        _write_pins_between(document, pins)
    record = MadeCells(proposal.cells, proposal.pins, tuple(made))
    write_cells(document, record)
    return record


def are_as_made(root: etree._Element, made: MadeCells) -> Optional[bool]:
    """Whether a domain's cells are those that were written; None where it has no cells at all."""
    numa = _numa(root)
    if numa is None or not len(numa):
        return None
    if len(numa) != len(made.cells):
        return False
    for element, cell in zip(numa, made.cells):
        says = dict(element.items())
        if element.tag != "cell" or not says.keys() <= _CELL or any(part.tag != "distances" for part in element):
            return False
        try:
            same = says.get("id", str(cell.number)) == str(cell.number) and in_kib(element, "", attribute="memory") == cell.memory_kib
        except DomainError:
            return False
        if not same or parse_spans(str(says.get("cpus", ""))) != cell.vcpus:
            return False
    return True


def memory_modes_of(root: etree._Element) -> set[str]:
    """The modes of the domain's memnodes."""
    numatune = child(root, "numatune")
    return {memnode.get("mode", "strict") for memnode in numatune.iterchildren("memnode")} if numatune is not None else set()


def take_out(document: Document, made: MadeCells) -> None:
    """Take the cells out of a domain, of which :func:`needed_by` told nothing; cells that are not as made stay, as the owner's."""
    root = document.root
    if are_as_made(root, made) is not False:
        numa = _numa(root)
        for cell in list(numa) if numa is not None else ():
            remove(cell)
        if numa is not None and "numa" in made.containers:
            remove(numa)
        _take_out_tuning(root, made)
        _take_out_pins(root, made)
        for tag in _CONTAINERS:
            element = child(root, tag)
            if tag in made.containers and element is not None and _is_empty(element):
                remove(element)
    write_cells(document, None)


def needed_by(root: etree._Element) -> Optional[str]:
    """What else in the domain, from which pcinuma's controllers were taken, needs its cells, in words; None for nothing."""
    top = parts_of(root)
    if "maxMemory" in top:
        return "<maxMemory>"
    backing = top.get("memoryBacking")
    if backing is not None and any(page.get("nodeset") is not None for page in backing.iterfind("hugepages/page")):
        return "<page nodeset='…'> in <hugepages>"
    devices = top.get("devices")
    if devices is None:
        return None
    if child(devices, "memory") is not None:
        return "a memory device (<memory>)"
    for controller in devices.iterchildren("controller"):
        target = child(controller, "target")
        if target is not None and child(target, "node") is not None:
            return f"<node> of PCI controller {controller.get('index')}"
    if next(devices.iterfind("*/acpi[@nodeset]"), None) is not None:
        return "<acpi nodeset='…'> of a device"
    return None


def _numa(root: etree._Element) -> Optional[etree._Element]:
    cpu = child(root, "cpu")
    return None if cpu is None else child(cpu, "numa")


def _write_numa(document: Document, proposal: Proposal, made: list[str]) -> None:
    cpu = child(document.root, "cpu")
    numa = child(cpu, "numa") if cpu is not None else None
    if numa is not None:
        _write_into(document, numa, lambda line: _cells_text(proposal, line[:-2]).lstrip())
        return
    made.append("numa")
    if cpu is None:
        _write_new(document, "cpu", lambda line: f"{line}<numa>{_cells_text(proposal, line)}{line}</numa>")
    else:
        _write_into(document, cpu, lambda line: f"<numa>{_cells_text(proposal, line)}{line}</numa>")


def _write_into(document: Document, parent: etree._Element, text: Callable[[str], str]) -> None:
    """Write at the end of ``parent`` what ``text`` makes of the white space before it."""
    slot = document.slot()
    append(parent, slot)
    document.fill(slot, text(space_before(slot)))


def _write_new(document: Document, tag: str, content: Callable[[str], str]) -> None:
    """Write an element of the domain where libvirt formats it; ``content`` makes of the white space in it what it holds."""
    root, slot = document.root, document.slot()
    before = frozenset(_IN_ORDER[: _IN_ORDER.index(tag)])
    last = next((part for part in root.iterchildren(reversed=True) if part.tag in before), None)
    if last is None:
        insert_first(root, slot)
    else:
        insert_after(last, slot)
    line = space_before(slot)
    document.fill(slot, f"<{tag}>{content(line + '  ' if line else '')}{line}</{tag}>")


def _cells_text(proposal: Proposal, line: str) -> str:
    """``line``: the white space before the element that the cells are in."""
    deeper, deepest, inmost = (line + "  ", line + "    ", line + "      ") if line else ("", "", "")
    text = ""
    for cell in proposal.cells:
        cpus = f" cpus='{format_ranges(cell.vcpus)}'" if cell.vcpus else ""
        text += f"{deeper}<cell id='{cell.number}'{cpus} memory='{cell.memory_kib}' unit='KiB'"
        if proposal.distances:
            row = enumerate(proposal.distances[cell.number])
            siblings = "".join([f"{inmost}<sibling id='{other}' value='{distance}'/>" for other, distance in row])
            text += f">{deepest}<distances>{siblings}{deepest}</distances>{deeper}</cell>"
        else:
            text += "/>"
    return text


def _write_pins_between(document: Document, pins: Sequence[tuple[int, str]]) -> None:
    """In the order of vCPUs, between those that the owner wrote."""
    cputune = child(document.root, "cputune")
    assert cputune is not None
    theirs = sorted([(int(pin.get("vcpu", "0")), order, pin) for order, pin in enumerate(cputune.iterchildren("vcpupin"))])
    last = next((part for part in cputune.iterchildren(reversed=True) if part.tag in _BEFORE_PINS), None)
    for vcpu, text in pins:
        while theirs and theirs[0][0] < vcpu:
            last = theirs.pop(0)[2]
        slot = document.slot()
        if last is None:
            insert_first(cputune, slot)
        else:
            insert_after(last, slot)
        document.fill(slot, text)
        last = slot


def _take_out_pins(root: etree._Element, made: MadeCells) -> None:
    cputune = child(root, "cputune")
    if cputune is None:
        return
    ours = {str(vcpu): cpus for vcpu, cpus in made.pins}
    for pin in list(cputune.iterchildren("vcpupin")):
        cpus: Optional[Ranges] = ours.get(str(pin.get("vcpu")))
        if cpus is not None and parse_spans(str(pin.get("cpuset", ""))) == cpus:
            remove(pin)


def _take_out_tuning(root: etree._Element, made: MadeCells) -> None:
    """The memnodes of the cells that go, whatever they say: libvirt takes none for a cell that is not there. And ``<memory>`` as made."""
    numatune = child(root, "numatune")
    if numatune is None:
        return
    numbers = {str(cell.number) for cell in made.cells}
    for memnode in list(numatune.iterchildren("memnode")):
        if memnode.get("cellid") in numbers:
            remove(memnode)
    memory = child(numatune, "memory")
    if memory is None or "memory" not in made.containers or memory.get("mode") != MemoryMode.RESTRICTIVE.value:
        return
    if memory.get("placement", "static") == "static" and parse_spans(memory.get("nodeset", "")) == _nodes(made.cells):
        remove(memory)


def _nodes(cells: Sequence[GuestCell]) -> Ranges:
    return Ranges.of({cell.node for cell in cells})


def _is_empty(element: etree._Element) -> bool:
    return not len(element) and not element.attrib and not (element.text or "").strip()
