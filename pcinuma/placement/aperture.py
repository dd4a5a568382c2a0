"""Whether the windows of a placed guest fit the part of its address space that UEFI firmware keeps for them.

Measured (QEMU 7.2, OVMF 2022.11 and SeaBIOS 1.16, one to eight BARs of 16 and 64 GiB; ``docs/limits.md``): OVMF gives each PCI root a
range of its own, in the order of bus numbers, each beginning at a multiple of the root's largest BAR. What lies between is lost, so
that a guest with expanders may need more than the same guest without; what does not fit is left unmapped. SeaBIOS maps the BARs of all
roots together, largest first, and loses nothing. The model below foretells each of the measured cases.

Only 64-bit prefetchable BARs count: a PCI bridge passes no others above 4 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from pcinuma.placement.plan_model import NoRoom

_MIB, _GIB = 1 << 20, 1 << 30


class NoAperture(NoRoom):
    """A layout whose windows would not be mapped."""


@dataclass(frozen=True)
class Aperture:
    """The firmware's range and what must fit in. ``known``: the size is said, not worked out from the CPU's address bits.

    ``bars``: source -> sizes of the 64-bit prefetchable BARs of the passthrough device.
    """

    size: int
    known: bool
    bars: Mapping[str, tuple[int, ...]]

    def check(self, roots: Sequence[Sequence[str]]) -> None:
        """Raise NoAperture where ``roots``, the devices on each PCI root in the order of bus numbers, would not fit.

        Where the size is an estimate that the guest exceeds even unplaced, the estimate is wrong, and is not believed.
        """
        if max((bar for root in roots for source in root for bar in self.bars.get(source, ())), default=0) < _GIB:
            return
        need = self._need(roots)
        if need <= self.size:
            return
        alone = self._need([[source for root in roots for source in root]])
        if self.known or alone <= self.size:
            raise NoAperture(
                f"the BARs need {need / _GIB:.0f} GiB of the {self.size / _GIB:.0f} GiB that the firmware keeps for them, "
                f"{alone / _GIB:.0f} GiB on one PCI root"
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
