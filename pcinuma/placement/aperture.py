"""Whether the windows of a placed guest fit the part of its address space that UEFI firmware keeps for them.

Measured (QEMU 7.2, OVMF 2022.11 and SeaBIOS 1.16, one to eight BARs of 16 and 64 GiB; ``docs/limits.md``): OVMF gives each PCI root a
range of its own, in the order of bus numbers, each beginning at a multiple of the root's largest BAR. What lies between is lost, so
that a guest with expanders may need more than the same guest without; what does not fit is left unmapped. SeaBIOS maps the BARs of all
roots together, largest first, and loses nothing. The model below foretells each of the measured cases.

Only 64-bit prefetchable BARs count: a PCI bridge passes no others above 4 GiB.

I/O space (measured likewise, one to twelve e1000e): OVMF has ten windows of 4 KiB, and keeps one for every hot-pluggable port of the main
root. With more than ten such ports, or more than eight devices with I/O BARs below expanders, it gives up on the expanders with such
devices altogether, memory included. On the main root Linux mends that, below an expander it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from pcinuma.placement.plan_model import NoRoom

_MIB, _GIB = 1 << 20, 1 << 30
_IO_PORTS, _IO_DEVICES = 10, 8


class NoAperture(NoRoom):
    """A layout whose windows would not be mapped."""


@dataclass(frozen=True)
class Aperture:
    """The firmware's range and what must fit in. ``size``: None where it cannot be known. ``known``: the size is said, not worked out
    from the CPU's address bits.

    ``bars``: source -> sizes of the 64-bit prefetchable BARs of the passthrough device. ``io``: the sources that have an I/O BAR.
    """

    size: Optional[int]
    known: bool
    bars: Mapping[str, tuple[int, ...]]
    io: frozenset[str] = frozenset()

    def misfit(self, roots: Sequence[Sequence[str]], main_hotplug: int = 0) -> Optional[str]:
        """Why ``roots``, the devices on each PCI root in the order of bus numbers, would not fit; None where they do.

        ``main_hotplug``: the hot-pluggable bridges of the main root. Where the size is an estimate that the guest exceeds even
        unplaced, the estimate is wrong, and is not believed.
        """
        moved = sum(1 for root in roots[1:] for source in root if source in self.io)
        if moved and (main_hotplug > _IO_PORTS or moved > _IO_DEVICES):
            return (
                f"{moved} devices with I/O BARs would be placed, of at most {_IO_DEVICES}, beside {main_hotplug} hot-pluggable ports "
                f"on the main root, of at most {_IO_PORTS}, for which UEFI firmware keeps I/O space; hotplug='off' on main root ports "
                "that need no hot-plug makes room"
            )
        if self.size is None or max((bar for root in roots for source in root for bar in self.bars.get(source, ())), default=0) < _GIB:
            return None
        need = self._need(roots)
        if need <= self.size:
            return None
        alone = self._alone(roots)
        if self.known or alone <= self.size:
            return (
                f"the BARs need {need / _GIB:.0f} GiB of the {self.size / _GIB:.0f} GiB that the firmware keeps for them, "
                f"{alone / _GIB:.0f} GiB on one PCI root"
            )
        return None

    def is_certain(self, roots: Sequence[Sequence[str]]) -> bool:
        """Whether ``roots`` do not fit a size that was said, where the same devices on one root would: nothing in that is an estimate."""
        return self.known and self.size is not None and self._alone(roots) <= self.size < self._need(roots)

    def _alone(self, roots: Sequence[Sequence[str]]) -> int:
        return self._need([[source for root in roots for source in root]])

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
