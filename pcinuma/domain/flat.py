# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain without NUMA cells says about its vCPUs and its memory: all that decides which cells it can be given.

Read only where cells are asked for. Numbers and units as libvirt reads them (``src/conf/domain_conf.c``, ``virScaleInteger`` in
``src/util/virutil.c``). A value that means nothing raises DomainError; a valid one that leaves no choice of cells is an ``obstacle``, a
sentence that names the element and what to write instead.
"""

from __future__ import annotations

from math import lcm
from typing import Mapping, NamedTuple, Optional

from lxml import etree

from pcinuma.domain.address import number, shortened
from pcinuma.domain.xml import Parts, child, parts_of
from pcinuma.errors import DomainError
from pcinuma.ranges import Ranges, parse_spans
from pcinuma.settings import MemoryMode

_UNITS = {
    "b": 1, "byte": 1, "bytes": 1,
    "kb": 1000, "k": 1 << 10, "kib": 1 << 10,
    "mb": 1000**2, "m": 1 << 20, "mib": 1 << 20,
    "gb": 1000**3, "g": 1 << 30, "gib": 1 << 30,
    "tb": 1000**4, "t": 1 << 40, "tib": 1 << 40,
    "pb": 1000**5, "p": 1 << 50, "pib": 1 << 50,
    "eb": 1000**6, "e": 1 << 60, "eib": 1 << 60,
}  # fmt: skip
_LARGEST_KIB = 1 << 53
_MIB, _PSERIES = 1024, 256 * 1024
_NO_LIST = "is no list of CPUs or nodes"
_OF_LIBVIRTS = "libvirt takes that only beside cells of the owner's own (<cpu><numa>)"


class Pin(NamedTuple):
    """To which host CPUs a vCPU is pinned, and by which element."""

    cpus: Ranges
    element: str


class Flat(NamedTuple):
    """``vcpus``: their maximum. ``threads``: vCPUs of one core of ``<topology>``. ``pins``: of vCPUs that are pinned, by ``<vcpupin>`` or
    by ``<vcpu cpuset>``. ``memory_kib``: that which the guest starts with. ``unit_kib``: in what libvirt and QEMU deal it out to cells.
    ``hugepage_kib``: the size of hugepages that is asked for, 0 where it is left to the kernel, None for none. ``nodeset``, ``mode``: of
    ``<numatune><memory>``."""

    vcpus: int
    threads: int
    pins: Mapping[int, Pin]
    memory_kib: int
    unit_kib: int
    hugepage_kib: Optional[int]
    nodeset: Optional[Ranges]
    mode: Optional[MemoryMode]
    obstacle: Optional[str]


def read_flat(root: etree._Element, pseries: bool) -> Flat:
    """Read the domain; ``pseries``: the machine deals out memory in larger pieces. Raises DomainError."""
    top = parts_of(root)
    vcpu = top.get("vcpu")
    vcpus = 1 if vcpu is None else number((vcpu.text or "").strip(), "<vcpu>")
    if not vcpus:
        raise DomainError("0 is no number of vCPUs", subject="<vcpu>")
    nodeset, mode, obstacle = _numatune(top)
    hugepage, of_pages = _hugepage(top)
    return Flat(
        vcpus,
        _threads(top),
        _pins(top, vcpu, vcpus),
        _memory(top),
        _PSERIES if pseries else _MIB,
        hugepage,
        nodeset,
        mode,
        _placement_auto(vcpu) or obstacle or of_pages or _memory_devices(top),
    )


def in_kib(element: etree._Element, what: str, default: str = "KiB", attribute: Optional[str] = None) -> int:
    """A size with its unit, rounded up to KiB as libvirt does. ``attribute``: the number is in it, else it is the element's text."""
    text = (element.get(attribute, "") if attribute else element.text or "").strip()
    factor = _UNITS.get(element.get("unit", default).lower())
    if factor is None or not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DomainError(f"{shortened(text)} {element.get('unit', default)[:20]} is no size", subject=what)
    size = -(-int(text) * factor // 1024)
    if size > _LARGEST_KIB:
        raise DomainError(f"{shortened(text)} {element.get('unit', default)[:20]} is no size", subject=what)
    return size


def whole_units(unit_kib: int, page_kib: int) -> int:
    """The unit in which memory is dealt out to cells where it is made of pages of ``page_kib``."""
    return lcm(unit_kib, page_kib)


def _threads(top: Parts) -> int:
    cpu = top.get("cpu")
    topology = child(cpu, "topology") if cpu is not None else None
    if topology is None or topology.get("threads") is None:
        return 1
    return max(1, number(topology.get("threads"), "<topology>: threads"))


def _pins(top: Parts, vcpu: Optional[etree._Element], vcpus: int) -> dict[int, Pin]:
    pins: dict[int, Pin] = {}
    cpuset = vcpu.get("cpuset") if vcpu is not None else None
    if cpuset:
        pin = Pin(_set(cpuset, "<vcpu>: cpuset"), f"<vcpu cpuset={shortened(cpuset)}>")
        pins = dict.fromkeys(range(vcpus), pin) if pin.cpus else {}
    cputune = top.get("cputune")
    for element in cputune.iterchildren("vcpupin") if cputune is not None else ():
        index = number(element.get("vcpu"), "<vcpupin>: vcpu")
        text = element.get("cpuset", "")
        named = f"<vcpupin vcpu='{index}' cpuset={shortened(text)}>"
        if index < vcpus:  # libvirt ignores the others
            pins[index] = Pin(_set(text, named), named)
    return pins


def _memory(top: Parts) -> int:
    element = top.get("memory")
    size = 0 if element is None else in_kib(element, "<memory>")
    if not size:
        raise DomainError("is missing or 0", subject="<memory>")
    return size


def _hugepage(top: Parts) -> tuple[Optional[int], Optional[str]]:
    backing = top.get("memoryBacking")
    hugepages = child(backing, "hugepages") if backing is not None else None
    if hugepages is None:
        return None, None
    pages = list(hugepages.iterchildren("page"))
    with_nodes = next((page for page in pages if page.get("nodeset") is not None), None)
    if with_nodes is not None:
        named = f"<page nodeset={shortened(with_nodes.get('nodeset'))}>"
        return None, f"{named} in <hugepages> names guest cells, of which there are none yet; without nodeset the pages are for all cells"
    if not pages:
        return 0, None
    return in_kib(pages[0], "<hugepages><page>: size", attribute="size"), None


def _numatune(top: Parts) -> tuple[Optional[Ranges], Optional[MemoryMode], Optional[str]]:
    numatune = top.get("numatune")
    if numatune is None:
        return None, None, None
    if child(numatune, "memnode") is not None:
        return None, None, f"<numatune> has a <memnode>; {_OF_LIBVIRTS}"
    memory = child(numatune, "memory")
    if memory is None:
        return None, None, None
    if memory.get("placement") == "auto":
        auto = "<numatune><memory placement='auto'> leaves the nodes to numad at each start"
        return None, None, f"{auto}; placement='static' with a nodeset, or no <memory> there, lets cells be bound to nodes"
    mode = memory.get("mode", "strict")
    if mode == "interleave":
        spread = "<numatune><memory mode='interleave'> spreads the memory over its nodes page by page"
        return None, None, f"{spread}; mode='strict' there gives each cell memory of one node"
    try:
        wanted = MemoryMode(mode)
    except ValueError:
        raise DomainError(f"mode {shortened(mode)} is none of strict, preferred, restrictive", subject="<numatune><memory>") from None
    text = memory.get("nodeset")
    nodeset = None if text is None else _set(text, "<numatune><memory>: nodeset")
    return nodeset or None, wanted, None


def _placement_auto(vcpu: Optional[etree._Element]) -> Optional[str]:
    if vcpu is None or vcpu.get("placement") != "auto":
        return None
    return "<vcpu placement='auto'> leaves the nodes to numad at each start; placement='static' lets cells be bound to nodes"


def _memory_devices(top: Parts) -> Optional[str]:
    devices = top.get("devices")
    device = child(devices, "memory") if devices is not None else None
    return None if device is None else f"<memory model={shortened(device.get('model'))}> is a memory device; {_OF_LIBVIRTS}"


def _set(text: str, what: str) -> Ranges:
    numbers = parse_spans(text)
    if numbers is None:
        raise DomainError(f"{shortened(text)} {_NO_LIST}", subject=what)
    return numbers
