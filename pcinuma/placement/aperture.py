# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the windows of a placed guest fit the part of its address space that UEFI firmware keeps for them.

Measured (QEMU 7.2, OVMF 2022.11 and SeaBIOS 1.16, one to eight BARs of 16 and 64 GiB; ``docs/limits.md``): OVMF gives each PCI root a
range of its own, in the order of bus numbers, each beginning at a multiple of the root's largest BAR. What lies between is lost, so
that a guest with expanders may need more than the same guest without; what does not fit is left unmapped. SeaBIOS maps the BARs of all
roots together, largest first, and loses nothing. The model below foretells each of the measured cases.

Only 64-bit prefetchable BARs count: a PCI bridge passes no others above 4 GiB.

How much OVMF keeps (edk2, ``OvmfPkg/Library/PlatformInitLib/MemDetect.c``: ``PlatformGetFirstNonAddress``, then
``PlatformAddressWidthFromCpuid`` and ``PlatformDynamicMmioWindow``; measured with 2022.11, 2025.02 and 2026.08) is :func:`firmware_range`:
what it is told, 32 GiB if nothing; or, where that is more and the CPU's address bits are believed, an eighth of the address space. Two
kinds of OVMF leave out the second part: those before 2022.11, and those from 2025.05 on (Debian's 2025.02 too) where they are told a
size. No domain says which OVMF it has. So what is told is a lower bound, and a layout that needs more than that is placed with a caution.

I/O space (measured likewise, one to twelve e1000e): OVMF has ten windows of 4 KiB, and keeps one for every hot-pluggable port of the main
root. With more than ten such ports, or more than eight devices with I/O BARs below expanders, it gives up on the expanders with such
devices altogether, memory included. On the main root Linux mends that, below an expander it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, NamedTuple, Optional, Sequence

from pcinuma.model import Firmware, Manager
from pcinuma.placement import hints as remedy
from pcinuma.plan import NoRoom

_MIB, _GIB = 1 << 20, 1 << 30
_IO_PORTS, _IO_DEVICES = 10, 8
_CLASSIC = 32 * _GIB
_LARGEST = 46
"""Address bits that OVMF uses at most (47 in 2022.11; more only with 5-level paging)."""
_BELIEVED = {"GenuineIntel": (36, 39), "AuthenticAMD": (40,), None: (36, 39, 40)}
_LOW_MEMORY = 2 * _GIB


class NoAperture(NoRoom):
    """A layout whose windows would not be mapped."""


class Range(NamedTuple):
    """What UEFI firmware keeps for BARs. ``size``: expected; ``least``: of firmware that takes what it is told literally.

    ``known``: the size was said, and what the CPU may add to it cannot be more. ``at_most``: what has room behind the guest's memory.
    """

    size: Optional[int]
    least: Optional[int]
    known: bool
    at_most: Optional[int] = None


def firmware_range(firmware: Firmware, vendor: Optional[str], bits: Optional[int], gib_pages: bool) -> Range:
    """The range of ``firmware`` on a host whose CPUs have this vendor, so many address bits, and pages of 1 GiB or not; None: unknown."""
    if firmware.size is not None:
        return Range(firmware.size, firmware.size, True)
    cpu, told = firmware.cpu, firmware.told
    own = cpu.bits if cpu.bits is not None else bits
    if own is None:
        return Range(None, told, False)
    vendor = cpu.vendor if cpu.vendor is not None else vendor
    pages = gib_pages if cpu.gib_pages is None else cpu.gib_pages
    own = own if cpu.limit is None else min(own, cpu.limit)
    size = _range(told, firmware.memory, vendor, own, pages)
    at_most = (1 << own) - _memory_end(firmware.memory)
    if told is None:
        return Range(size, size, False, at_most)
    most = 1 << (max(own, bits or 64) - 3) if cpu.perhaps_hosts else size
    return Range(size, told, most <= size, at_most)


def _range(told: Optional[int], memory: int, vendor: Optional[str], bits: int, gib_pages: bool) -> int:
    classic = _CLASSIC if told is None else told
    if bits <= 40 and bits not in _BELIEVED.get(vendor, ()):
        return classic
    bits = min(bits, _LARGEST if gib_pages else 40)
    base = 0
    if classic:
        alignment = 1 << (classic.bit_length() - 1)
        base = -(-_memory_end(memory) // alignment) * alignment
    computed = 1 << (bits - 3)
    return computed if classic < computed and base + computed < 1 << bits else classic


def _memory_end(memory: int) -> int:
    return 4 * _GIB + max(memory - _LOW_MEMORY, 0)


@dataclass(frozen=True)
class Aperture:
    """The firmware's range and what must fit in. ``size``: None where it cannot be known. ``known``: the size is said, not worked out
    from the CPU's address bits.

    ``bars``: source -> sizes of the 64-bit prefetchable BARs of the passthrough device. ``io``: the sources that have an I/O BAR.
    ``least``: the size of firmware that takes literally what it is told, None where that is ``size``. ``firmware``: what the domain says,
    ``at_most``: the largest size that it could be told, both for the sake of the sentences.
    """

    size: Optional[int]
    known: bool
    bars: Mapping[str, tuple[int, ...]]
    io: frozenset[str] = frozenset()
    least: Optional[int] = None
    firmware: Optional[Firmware] = None
    at_most: Optional[int] = None

    def misfit(self, roots: Sequence[Sequence[str]], main_hotplug: int = 0) -> Optional[str]:
        """Why ``roots``, the devices on each PCI root in the order of bus numbers, would not fit; None where they do.

        ``main_hotplug``: the hot-pluggable bridges of the main root. Where the size is an estimate that the guest exceeds even
        unplaced, the estimate is wrong, and is not believed.
        """
        moved = sum(1 for root in roots[1:] for source in root if source in self.io)
        if moved and (main_hotplug > _IO_PORTS or moved > _IO_DEVICES):
            return self._io_sentence(moved, main_hotplug)
        if self.size is None or self._is_small(roots):
            return None
        need = self._need(roots)
        if need <= self.size:
            return None
        alone = self._alone(roots)
        return self._sentence(need, self.size, alone) if self.known or alone <= self.size else None

    def caution(self, roots: Sequence[Sequence[str]]) -> Optional[str]:
        """Why ``roots``, which fit, would not with firmware that takes literally what it is told, where they would on one root."""
        if self.least is None or self._is_small(roots):
            return None
        need, alone = self._need(roots), self._alone(roots)
        if not alone <= self.least < need:
            return None
        sentence = self._sentence(need, self.least, alone)
        return f"some versions of OVMF (before 2022.11, from 2025.05 on, Debian's 2025.02) keep no more than they are told, and {sentence}"

    def is_certain(self, roots: Sequence[Sequence[str]]) -> bool:
        """Whether ``roots`` do not fit a size that was said, where the same devices on one root would: nothing in that is an estimate."""
        if not self.known or self.size is None:
            return False
        return self._alone(roots) <= (self.size if self.least is None else self.least) and self.size < self._need(roots)

    def _is_small(self, roots: Sequence[Sequence[str]]) -> bool:
        return max((bar for root in roots for source in root for bar in self.bars.get(source, ())), default=0) < _GIB

    def _alone(self, roots: Sequence[Sequence[str]]) -> int:
        return self._need([[source for root in roots for source in root]])

    def _sentence(self, need: int, size: int, alone: int) -> str:
        can_be_told = self.at_most is None or need <= self.at_most
        return (
            f"the BARs need {_exactly(need)} of the {_exactly(size)} that the firmware keeps for them, {_exactly(alone)} on one PCI root; "
            + remedy.for_memory(self.firmware, need, can_be_told)
        )

    def _io_sentence(self, moved: int, main_hotplug: int) -> str:
        manager = Manager.LIBVIRT if self.firmware is None else self.firmware.manager
        if moved > _IO_DEVICES:
            way = "<keep device='…'/> in the domain's metadata leaves a device where it is"
        else:
            way = remedy.for_ports(manager, _IO_PORTS)
        return (
            f"{moved} {'device' if moved == 1 else 'devices'} with I/O BARs would be placed, of at most {_IO_DEVICES}, beside "
            f"{main_hotplug} hot-pluggable ports on the main root, of at most {_IO_PORTS}, for which UEFI firmware keeps I/O space; {way}"
        )

    def _need(self, roots: Sequence[Sequence[str]]) -> int:
        """The first byte behind everything. The main root has some small BARs of emulated devices."""
        end = 0
        for position, root in enumerate(roots):
            windows = [(max(bars), sum(bars)) for source in root if (bars := self.bars.get(source))]
            if position == 0:
                windows.append((_MIB, _MIB))
            windows.sort(reverse=True)
            for alignment, size in windows:
                alignment = max(alignment, _MIB)
                end = -(-end // alignment) * alignment + -(-size // _MIB) * _MIB
        return end


def _exactly(size: int) -> str:
    """``size`` in whole GiB, and the MiB that are left: figures that differ never look alike."""
    whole, rest = divmod(size // _MIB, 1024)
    return f"{whole} GiB + {rest} MiB" if whole and rest else f"{rest} MiB" if rest else f"{whole} GiB"
